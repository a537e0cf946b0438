# BusyBox and toybox with `stat`.
# shellcheck disable=SC2034,SC2154

stat_format='%f %s %b %h %u %g %d %i %t %T %x|%y|%z'
version_format='%d %i %s %y'
ctime_format='%z'

# Each record begins with GS, the listing mark and a space. After the last one come GS, the listing
# mark, `!` and the error messages.
list_directory() {
	output=$({ { printf '%s\0' "$1"; find "$1" -mindepth 1 -maxdepth 1 -print0; } |
		xargs -0 stat -c "$(printf '\035%s ' "$listing_mark")$stat_format %n" -- >&3; } 2>&1)
	status=$?
	printf '\035%s!%s' "$listing_mark" "$output"
	answer $status
}

# The records are those of list_directory, of the paths that find printed within MAX_BYTES bytes. The
# last path is `//` if find succeeded, and `///` if its status was 1: it could not read a directory, or
# gave up.
list_trees() {
	max_bytes=$1
	shift
	output=$({ {
		find "$@" -xdev -print0
		case $? in 0) printf '//\0' ;; 1) printf '///\0' ;; esac
	} | head -c "$max_bytes" |
		xargs -0 stat -c "$(printf '\035%s ' "$listing_mark")$stat_format %n" -- >&3; } 2>&1)
	status=$?
	printf '\035%s!%s' "$listing_mark" "$output"
	answer $status
}

hard_link() { portable_link "$1" "$2"; }
