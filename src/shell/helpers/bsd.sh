# BSD and macOS: `stat -f` takes a format, as `stat -c` does elsewhere.
# shellcheck disable=SC2034,SC2154

stat_format='%Xp %z %b %l %u %g %d %i %XHr %XLr %Fa %Fm %Fc'
version_format='%d %i %z %Fm'

print_stats() { stat -f "$stat_format" -- "$@"; }
# shellcheck disable=SC2086
print_versions() {
	follow_option=${1:+-L} format="$version_format${2:+ %Fc}|%Mp%Lp %u:%g"
	shift 2
	stat $follow_option -f "$format" -- "$@"
}
print_size() { stat -L -f %z -- "$1"; }
# Only the procfs of Linux, and what imitates it, has files with a wrong size. 9fa0 is its magic
# number.
print_fs_type() { case $1 in /proc/*) printf '9fa0\n' ;; esac; }
print_fs() { df -Pk -- "$1"; }

# The records are those of BusyBox.
list_directory() {
	output=$({ { printf '%s\0' "$1"; find "$1" -mindepth 1 -maxdepth 1 -print0; } |
		xargs -0 stat -f "$(printf '\035%s ' "$listing_mark")$stat_format %N" -- >&3; } 2>&1)
	status=$?
	printf '\035%s!%s' "$listing_mark" "$output"
	answer $status
}

list_trees() {
	max_bytes=$1
	shift
	output=$({ {
		find "$@" -xdev -print0
		case $? in 0) printf '//\0' ;; 1) printf '///\0' ;; esac
	} | head -c "$max_bytes" |
		xargs -0 stat -f "$(printf '\035%s ' "$listing_mark")$stat_format %N" -- >&3; } 2>&1)
	status=$?
	printf '\035%s!%s' "$listing_mark" "$output"
	answer $status
}

hard_link() { portable_link "$1" "$2"; }
