"""Any spec of the grammar: sums, modifiers, schedules, MMDetection's dicts. And mutilated ones."""

import copy
import json
import os
import pickle
import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import yolox_loss_patch as ylp
from yolox_loss_patch.specs.labels import label_of
from yolox_loss_patch.specs.plain import plain
from yolox_loss_patch.specs.registry import LOSSES
from yolox_loss_patch.specs.resolve import family_knobs, parts_of, resolve, stage_knobs

EXAMPLES = int(os.environ.get("EXAMPLES", "150"))  # 2000 were run by hand
TERMS = ("obj", "cls", "iou", "l1")


def numbers(low, high):
    return st.floats(low, high, allow_nan=False).map(lambda value: float(f"{value:.3g}"))


WEIGHTS = st.one_of(
    numbers(0, 5), st.dictionaries(st.integers(1, 300), numbers(0, 3), min_size=1, max_size=4), st.just(1)
)
WISE = st.one_of(
    st.none(),
    st.sampled_from((1, 2, 3)),
    st.fixed_dictionaries(
        {}, optional={"version": st.sampled_from((1, 2, 3)), "alpha": numbers(1.1, 5), "momentum": numbers(0, 1)}
    ),
)
KNOWN = {
    "power": numbers(0.3, 6),
    "inner": numbers(0.2, 2),
    "focaler": st.one_of(st.none(), st.tuples(numbers(0, 0.4), numbers(0.5, 1))),
    "focal": numbers(0, 3),
    "wise": WISE,
    "image_size": st.tuples(numbers(600, 2000), numbers(600, 2000)),  # the boxes lie in it
    "constant": st.one_of(numbers(1, 100), st.just("mean")),
    "pos_weight": numbers(0.1, 5),
    "class_weight": st.none(),
    "sampler": st.one_of(st.none(), st.just(dict(type="RandomSampler", num=9))),
    "level_weights": st.none(),
    "start_epoch": st.one_of(st.none(), st.just(4)),
    "loss_weight": WEIGHTS,
    "reduction": st.sampled_from(("mean", "sum")),
    "activated": st.just(False),
    "calibrated": st.booleans(),
    "by_overlap": st.booleans(),
}


def values(name, knob):
    """What a knob may be, without the ends at which a loss is allowed to be steep."""
    if name in KNOWN:
        return KNOWN[name]
    if name == "alpha" and knob.parse is not None:
        return st.one_of(numbers(0, 1), st.lists(numbers(0, 1), min_size=2, max_size=2))
    if knob.choices:
        return st.sampled_from(knob.choices)
    if isinstance(knob.default, bool):
        return st.booleans()
    high = min(knob.high, 6) - 0.1
    low = max(knob.low, 0) + 0.1
    return st.integers(int(low) + 1, 9) if isinstance(knob.default, int) else numbers(min(low, high), high)


@st.composite
def one_loss(draw, term):
    name = draw(st.sampled_from([name for name in LOSSES.names(term) if LOSSES.get(term, name).from_kit]))
    loss = LOSSES.get(term, name)
    knobs = {
        **loss.knobs,
        **family_knobs(term, loss),
        **stage_knobs(term, loss),
        "loss_weight": None,
        "reduction": None,
    }
    chosen = draw(st.lists(st.sampled_from(sorted(knobs)), max_size=4, unique=True))
    spec = {"type": name, **{key: draw(values(key, knobs[key])) for key in chosen}}
    if spec.get("mode", "square") != "square":  # a mode is a power, and -log IoU has no modifiers
        spec = {key: value for key, value in spec.items() if key in ("type", "mode", "loss_weight")}
    elif "mode" in spec:
        spec.pop("power", None)
    if spec.get("calibrated"):  # a pull of 0 and a curve per class cannot be calibrated
        spec.pop("alpha", None)
        spec.pop("activated", None)
        spec.pop("label_smoothing", None)
        if name == "asymmetric":
            spec["margin"] = 0.0  # below it the background has no pull
    if spec.get("by_overlap"):  # for power 1
        spec.pop("power", None)
        spec["by_overlap"] = "power" in knobs and knobs["power"].default == 1
    if spec.get("reduction") == "sum":
        spec.pop("avg_factor", None)
    return spec if len(spec) > 1 or draw(st.booleans()) else name


MMDET = {
    "obj": [
        dict(type="mmdet.FocalLoss", use_sigmoid=True, alpha=0.3),
        dict(type="GHMC", bins=30),
        dict(type="VarifocalLoss", use_sigmoid=True),
    ],
    "cls": [dict(type="CrossEntropyLoss", use_sigmoid=True, reduction="sum"), dict(type="QualityFocalLoss", beta=2.0)],
    "iou": [dict(type="IoULoss", iou_mode="siou", return_iou=False), dict(type="CIoULoss", eps=1e-7), "IoULoss"],
    "l1": [dict(type="SmoothL1Loss", beta=0.3), dict(type="BalancedL1Loss")],
}


@st.composite
def any_spec(draw):
    term = draw(st.sampled_from(TERMS))
    part = st.one_of(one_loss(term), one_loss(term), st.sampled_from(MMDET[term]))
    parts = draw(st.lists(part, min_size=1, max_size=3))
    return term, parts[0] if len(parts) == 1 and draw(st.booleans()) else parts


def batch(term, dtype):
    generator = torch.Generator().manual_seed(3)
    if term == "iou":
        target = torch.rand(6, 4, generator=generator) * 40 + 20
        pred = target * (1 + 0.3 * torch.randn(6, 4, generator=generator))
        pred[0, :2] += 500  # apart
    elif term == "l1":
        pred, target = torch.randn(6, 4, generator=generator), torch.randn(6, 4, generator=generator)
    else:
        pred = 4 * torch.randn(6, 2, generator=generator)
        target = torch.rand(6, 2, generator=generator) * (torch.rand(6, 2, generator=generator) < 0.5)
    return pred.to(dtype).requires_grad_(), target.to(dtype)


FACTS = {"images": 2, "image_size": (96, 128), "ious": torch.linspace(0, 1, 6), "mean_iou": torch.tensor(0.4)}


@settings(derandomize=True, deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(any_spec())
def test_any_spec_is_a_loss(drawn):
    term, spec = drawn
    resolved = resolve(term, spec)
    assert resolve(term, resolved) == resolved
    text = label_of(term, resolved)
    assert resolve(term, text) == resolved, text
    assert resolve(term, json.loads(json.dumps(plain(resolved)))) == resolved
    config = ylp.LossConfig(**{f"loss_{term}": spec})
    again = ylp.LossConfig(**json.loads(json.dumps(plain(config.to_dict()))))
    assert again == config and hash(again) == hash(config) and str(again) == str(config)
    assert ylp.LossConfig(**{f"loss_{term}": text}) == config
    module = ylp.build_loss(term, spec)
    assert len(parts_of(resolved)) == 1 or len(module.losses) == len(parts_of(resolved))
    module.set_epoch(7)
    modules = [module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
    facts = {name: FACTS[name] for name in module.wants}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        results = []
        for each in modules:
            pred, target = batch(term, dtype)
            with torch.autocast(
                "cpu", dtype=torch.bfloat16 if dtype == torch.float32 else dtype, enabled=dtype != torch.float32
            ):
                value = each(pred, target, **facts)
            value.backward()
            assert value.isfinite() and pred.grad.isfinite().all(), (text, dtype, value, pred.grad)
            results.append(value.detach())
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


WRONG_WORDS = (
    "bce+",
    "0.5*",
    "ciou(",
    "ciou(power=)",
    "*bce",
    "bce+0.5*dise",
    "bce(gama=1)",
    "ciou(power=-1)",
    "a.b.c",
)
KNOB_VALUES = st.one_of(
    st.text(max_size=4), st.floats(), st.none(), st.sampled_from(({}, {"0": 1}, "ciou", 2, [1], True))
)
SCRAPS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(0, 2), max_size=2),
    st.sampled_from(WRONG_WORDS),
    st.dictionaries(
        st.sampled_from(("type", "gamma", "power", "wise", "loss_weight", "gate")), KNOB_VALUES, max_size=3
    ),
)


@st.composite
def nearly_a_spec(draw):
    """A loss of the kit with knobs that exist somewhere, and with values that may be anything."""
    term = draw(st.sampled_from(TERMS))
    name = draw(st.sampled_from(sorted({name for each in TERMS for name in LOSSES.names(each)})))
    knobs = sorted({knob for each in TERMS for other in LOSSES.names(each) for knob in LOSSES.get(each, other).knobs})
    stage = ("loss_weight", "reduction", "avg_factor", "target", "sampler", "start_epoch", "calibrated", "by_overlap")
    value = st.one_of(KNOB_VALUES, st.integers(-3, 200), st.lists(st.floats(), max_size=2))
    return term, {"type": name, **draw(st.dictionaries(st.sampled_from((*knobs, *stage)), value, max_size=2))}


# How a message says what is allowed, or what to do.
ALLOWED = re.compile(
    "is a name such as|Choose|Did you mean|is written|[Kk]nobs? of|is a number|is a whole number|is one of|is None|"
    "is True or False|Only loss_|use it for|Write|write|is for box losses|at least|at most|is set by|a list of|such as|are None"
)


@settings(derandomize=True, deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(st.one_of(nearly_a_spec(), st.tuples(st.sampled_from(TERMS), st.one_of(SCRAPS, st.lists(SCRAPS, max_size=2)))))
def test_a_bad_spec_is_one_line_that_names_what_is_allowed(drawn):
    term, spec = drawn
    try:
        ylp.build_loss(term, spec)
    except ylp.ConfigError as error:
        message = str(error)
        assert "\n" not in message and f"loss_{term}" in message and ALLOWED.search(message), message
    except Exception as error:
        pytest.fail(f"{spec!r}: {type(error).__name__}: {error}")
