# BSD and macOS: `stat -f` prints what `stat -c` does elsewhere.
# shellcheck disable=SC2034,SC2154

SF='%Xp %z %b %l %u %g %d %i %XHr %XLr %Fa %Fm %Fc'
VF='%d %i %z %Fm'

st() { stat -f "$SF" -- "$@"; }
# shellcheck disable=SC2086
look() {
	o=${1:+-L} f="$VF${2:+ %Fc}|%Mp%Lp %u:%g"
	shift 2
	stat $o -f "$f" -- "$@"
}
sz() { stat -L -f %z -- "$1"; }
# Only Linux has files whose size lies, and what imitates it.
ft() { case $1 in /proc/*) printf '9fa0\n' ;; esac; }
fs() { df -Pk -- "$1"; }

# Records as with BusyBox.
l() {
	e=$({ { printf '%s\0' "$1"; find "$1" -mindepth 1 -maxdepth 1 -print0; } |
		xargs -0 stat -f "$(printf '\035%s ' "$K")$SF %N" -- >&3; } 2>&1)
	s=$?
	printf '\035%s!%s' "$K" "$e"
	a $s
}

ln_() { portable_ln "$1" "$2"; }
