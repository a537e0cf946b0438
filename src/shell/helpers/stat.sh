# `stat -c`, which GNU, BusyBox and toybox have.
# shellcheck disable=SC2154

st() { stat -c "$SF" -- "$@"; }
# shellcheck disable=SC2086
look() {
	o=${1:+-L} f="$VF${2:+ $CF}|%a %u:%g"
	shift 2
	stat $o -c "$f" -- "$@"
}
sz() { stat -L -c %s -- "$1"; }
ft() { stat -f -c %t -- "$1"; }
fs() { stat -f -c '%S %b %f %a %c %d %l' -- "$1"; }
