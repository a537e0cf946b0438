# `stat -c`, which GNU, BusyBox and toybox have.
# shellcheck disable=SC2154

print_stats() { stat -c "$stat_format" -- "$@"; }
# shellcheck disable=SC2086
print_versions() {
	follow_option=${1:+-L} format="$version_format${2:+ $ctime_format}|%a %u:%g"
	shift 2
	stat $follow_option -c "$format" -- "$@"
}
print_size() { stat -L -c %s -- "$1"; }
print_fs_type() { stat -f -c %t -- "$1"; }
print_fs() { stat -f -c '%S %b %f %a %c %d %l' -- "$1"; }
