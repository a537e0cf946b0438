# `stat -c`, which GNU, BusyBox and toybox have.
# shellcheck disable=SC2154

st() { stat -c "$SF" -- "$@"; }
vf() { stat -c "$VF" -- "$1"; }
vc() { stat -c "$VF $CF" -- "$1"; }
sz() { stat -c %s -- "$1"; }
ft() { stat -f -c %t -- "$1"; }
fs() { stat -f -c '%S %b %f %a %c %d %l' -- "$1"; }
