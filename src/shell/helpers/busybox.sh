# BusyBox and toybox with `stat`.
# shellcheck disable=SC2034,SC2154

SF='%f %s %b %h %u %g %d %i %t %T %x|%y|%z'
VF='%d %i %s %y'
CF='%z'

# Records begin with GS, the word K and a space; the last begins with GS, the word and `!`.
l() {
	e=$({ { printf '%s\0' "$1"; find "$1" -mindepth 1 -maxdepth 1 -print0; } |
		xargs -0 stat -c "$(printf '\035%s ' "$K")$SF %n" -- >&3; } 2>&1)
	s=$?
	printf '\035%s!%s' "$K" "$e"
	a $s
}

ln_() { portable_ln "$1" "$2"; }
