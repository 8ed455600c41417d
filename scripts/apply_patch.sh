#!/usr/bin/env bash
# Build the kit into a source checkout of YOLOX, or into an unpacked or installed package, with the diffs of patches/.
#
#     scripts/apply_patch.sh [--check | --reverse] CHECKOUT [losses | trainer]
#
# CHECKOUT is the folder with `yolox` in it, or that `yolox` folder itself. Without the last word both diffs are meant:
# `losses` adds the loss_* settings, `trainer` trains with the kit's trainer. --check says what would happen, --reverse
# takes the diffs out again. Either everything that is asked for is written or nothing is.
#
# Exit status: 0 when the checkout is as asked for, also when it was before; 1 when a diff does not fit; 2 for a mistake
# in the command.
set -euo pipefail

patches="$(cd "$(dirname "${BASH_SOURCE[0]}")/../patches" && pwd)"

fail() { # STATUS MESSAGE
    echo "error: $2" >&2
    exit "$1"
}

usage="Use: apply_patch.sh [--check | --reverse] CHECKOUT [losses | trainer]"
mode=apply
words=()
for word in "$@"; do
    case "$word" in
        --check | --reverse)
            [ "$mode" = apply ] || fail 2 "--check and --reverse exclude each other. $usage"
            mode="${word#--}"
            ;;
        -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}" && exit 0 ;;
        -*) fail 2 "There is no option $word. $usage" ;;
        *) words+=("$word") ;;
    esac
done
case "${#words[@]}" in
    1) kinds="losses trainer" ;;
    2) kinds="${words[1]}" ;;
    *) fail 2 "$usage" ;;
esac
case "$kinds" in
    losses | trainer | "losses trainer") ;;
    *) fail 2 "There is no diff $kinds; there are losses and trainer. $usage" ;;
esac

if command -v patch >/dev/null; then
    # -F0: where the text differs a diff does not fit, and is not squeezed in
    apply_hunk() { patch -s -f -F0 -p1 -d "$1" -i "$2" ${3:+"$3"} >/dev/null 2>&1; }
elif command -v git >/dev/null; then
    unset GIT_DIR GIT_WORK_TREE
    apply_hunk() {
        GIT_CEILING_DIRECTORIES="$temp" git -C "$1" -c core.autocrlf=false -c apply.whitespace=nowarn \
            -c apply.ignoreWhitespace=no apply -p1 ${3:+"$3"} "$2" >/dev/null 2>&1
    }
else
    fail 2 "This needs patch or git, and neither is here. Install one of them."
fi

# Which YOLOX it is, by what its files are: 0.3.0 and main bear the same version.
root="${words[0]}"
[ -d "$root" ] || fail 2 "There is no folder '$root'."
root="$(cd "$root" && pwd)"
[ -d "$root/yolox" ] || { [ -f "$root/__init__.py" ] && [ "$(basename "$root")" = yolox ] && root="$(dirname "$root")"; } || true
if [ -f "$root/yolox/exp/yolox_base.py" ]; then
    host=yolox-0.3.0
    ! grep -q check_exp_value "$root/yolox/exp/yolox_base.py" || host=yolox-main
elif [ -f "$root/yolox/config.py" ]; then
    host=pixeltable-yolox
else
    fail 2 "'${words[0]}' is no YOLOX: it has neither yolox/exp/yolox_base.py nor yolox/config.py."
fi

temp="$(cd "$(mktemp -d)" && pwd -P)"
new_files=()
trap 'rm -rf "$temp" ${new_files[@]+"${new_files[@]}"}' EXIT

# An installed package has the checkout's `tools` and `exps/default` inside `yolox`.
place() { # FILE OF A CHECKOUT
    local inside="$1"
    case "$1" in
        tools/*) inside="yolox/$1" ;;
        exps/default/*) inside="yolox/exp/default/${1##*/}" ;;
    esac
    if [ -f "$root/$inside" ]; then echo "$inside"; else echo "$1"; fi
}

# The work is done on a copy of the files, and whatever goes wrong there, the checkout is untouched.
files=()
mkdir "$temp/work"
for kind in $kinds; do
    # One file a hunk, KIND.NUMBER, so that each can be tried by itself; its first line is a title.
    hunk="" number=10
    while IFS= read -r line; do
        case "$line" in
            "--- a/"*)
                name="$(place "${line#--- a/}")" hunk_of_file=0
                mkdir -p "$temp/work/$(dirname "$name")"
                if [ -f "$root/$name" ] && [ ! -f "$temp/work/$name" ]; then
                    cp "$root/$name" "$temp/work/$name"
                    files+=("$name")
                fi
                ;;
            "+++ b/"*) ;;
            *)
                case "$line" in "@@ "*)
                    number=$((number + 1)) hunk_of_file=$((hunk_of_file + 1))
                    hunk="$temp/$kind.$number"
                    printf '%s, hunk %s\n--- a/%s\n+++ b/%s\n' "$name" "$hunk_of_file" "$name" "$name" >"$hunk"
                    ;;
                esac
                printf '%s\n' "$line" >>"$hunk"
                ;;
        esac
    done <"$patches/$host/$kind.diff"
done

tell() { # HUNK
    local name
    name="$(sed -n 's/, hunk [0-9]*$//;1p' "$1")"
    if [ ! -f "$root/$name" ]; then
        echo "  $name: there is no such file"
    else
        sed -e '2,3d' -e '1s/^/  /' -e '1s/$/:/' -e '4,$s/^/    /' "$1"
        if grep -q $'\r' "$root/$name"; then echo "    (the file has Windows line endings, the diff has not)"; fi
    fi
}

wanted="" other=-R
if [ "$mode" = reverse ]; then wanted=-R other=""; fi
to_do="" there="" status=0
for kind in $kinds; do
    failed="" state=there
    for hunk in "$temp/$kind".*; do
        if apply_hunk "$temp/work" "$hunk" "$wanted"; then
            state=to_do
        elif apply_hunk "$temp/work" "$hunk" "$other"; then
            apply_hunk "$temp/work" "$hunk" "$wanted" # it is as asked for already, and stays so
        else
            failed="$failed$(tell "$hunk")"$'\n'
        fi
    done
    if [ -n "$failed" ]; then
        status=1
        echo "error: $host/$kind.diff does not fit '${words[0]}'. Nothing was changed. These places differ from what it expects:"
        printf '%s' "$failed" | uniq
        echo "Restore them and run this again, or make the changes of $patches/$host/$kind.diff by hand."
    elif [ "$state" = to_do ]; then
        to_do="$to_do $kind"
    else
        there="$there $kind"
    fi
done >&2
[ "$status" = 0 ] || exit 1

if [ "$mode" != check ]; then
    # New files first, then their names: a folder that cannot be written to is found out before anything changes.
    changed=()
    for name in "${files[@]}"; do
        if cmp -s "$temp/work/$name" "$root/$name"; then continue; fi
        new="$root/$name.apply_patch"
        new_files+=("$new")
        { cp -p "$root/$name" "$new" && cat "$temp/work/$name" >"$new"; } 2>/dev/null \
            || fail 1 "'$root/$name' cannot be written. Nothing was changed."
        changed+=("$name")
    done
    for name in ${changed[@]+"${changed[@]}"}; do mv -f "$root/$name.apply_patch" "$root/$name"; done
fi

case "$mode" in
    apply) done_="applied" already="applied already" ;;
    check) done_="fits" already="applied already" ;;
    reverse) done_="taken out" already="not there" ;;
esac
for kind in $to_do; do echo "$host/$kind.diff: $done_"; done
for kind in $there; do echo "$host/$kind.diff: $already, nothing changed"; done
for name in ${changed[@]+"${changed[@]}"}; do echo "  $root/$name"; done
