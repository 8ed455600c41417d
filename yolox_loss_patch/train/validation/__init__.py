"""What an evaluation measures besides detections: the losses on the validation images."""
