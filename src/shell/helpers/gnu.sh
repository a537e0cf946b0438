# GNU coreutils and findutils.
# shellcheck disable=SC2034,SC2154

SF='%f %s %b %h %u %g %d %i %t %T %.9X %.9Y %.9Z'
VF='%d %i %s %.9Y'
CF='%.9Z'

# Records end with NUL; what comes after the last one is what find complained of.
l() {
	e=$(find "$1" -maxdepth 1 -printf '%y %m %s %b %n %U %G %D %i %A@ %T@ %C@ %d %f\0%l\0' 2>&1 >&3)
	s=$?
	printf '%s' "$e"
	a $s
}

ln_() { ln -PT -- "$1" "$2"; }
