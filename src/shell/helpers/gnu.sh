# GNU coreutils and findutils.
# shellcheck disable=SC2034,SC2154

stat_format='%f %s %b %h %u %g %d %i %t %T %.9X %.9Y %.9Z'
version_format='%d %i %s %.9Y'
ctime_format='%.9Z'

# The fields of a record end with NUL; the error messages of find follow the last record.
list_directory() {
	output=$(find "$1" -maxdepth 1 -printf '%y %m %s %b %n %U %G %D %i %A@ %T@ %C@ %d %f\0%l\0' 2>&1 >&3)
	status=$?
	printf '%s' "$output"
	answer $status
}

# The records are those of list_directory, then one that is `end` and the status of find; the answer
# goes on as that of list_trees in busybox.sh.
list_trees() {
	max_bytes=$1
	shift
	output=$({ {
		find "$@" -xdev -printf '%y %m %s %b %n %U %G %D %i %A@ %T@ %C@ %d %f\0%l\0'
		printf 'end %s\0\0' $?
	} | head -c "$max_bytes" >&3; } 2>&1)
	status=$?
	printf '\035%s!%s' "$listing_mark" "$output"
	answer $status
}

hard_link() { ln -PT -- "$1" "$2"; }
