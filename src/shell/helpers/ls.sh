# BusyBox without `stat`, as on OpenWrt: `ls` prints all attributes but the device, which the table
# of mounts has. `ls` sorts its output and prints `?` for some bytes of names. The names themselves
# are sent as well, each with a NUL at its end; the client sorts them in the same way and pairs them
# with the lines of `ls`.
# shellcheck disable=SC2154

# print_mounts DIR PATH...: prints the mounts that the paths are on, and those below DIR: device,
# type, mountpoint, NUL.
print_mounts() {
	below=${1%/}
	shift
	while read -r _ _ device _ mountpoint mount_fields; do
		for mounted_path; do
			case $mountpoint in
			# The kernel writes a space in a mountpoint as \040; the client undoes that.
			*\\* | "$below"/*) ;;
			*) case $mounted_path/ in "${mountpoint%/}"/*) ;; *) continue ;; esac ;;
			esac
			mount_fields=${mount_fields#* - }
			printf '%s %s %s\0' "$device" "${mount_fields%% *}" "$mountpoint"
			break
		done
	done </proc/self/mountinfo
}

# print_stats PATH...: prints GS, the paths, an empty one, the mounts, an empty one; then the lines
# of ls with mtimes, with ctimes and with atimes.
print_stats() {
	output=$(ls -lnids --full-time -- "$@") || { printf '%s\n' "$output"; return 1; }
	printf '\035'
	printf '%s\0' "$@" ''
	print_mounts // "$@"
	printf '\0%s\n' "$output"
	ls -lnidsc --full-time -- "$@"
	ls -lnidsu --full-time -- "$@"
}

# list_directory DIR: answers with the paths in DIR, an empty one, the mounts, an empty one; then
# the output of ls with mtimes, ctimes and atimes, each followed by GS and the listing mark; then
# the error messages.
list_directory() {
	if ! [ -d "$1" ] || [ -h "$1" ]; then
		printf '\0\0\035%s\035%s\035%s' "$listing_mark" "$listing_mark" "$listing_mark"
		if output=$(ls -d -- "$1" 2>&1); then output=': Not a directory'; fi
		printf '%s\n' "$output"
		answer 1
		return
	fi
	output=$({
		find "$1" -mindepth 1 -maxdepth 1 -print0
		printf '\0'
		print_mounts "$1" "$1"
		printf '\0'
		for time_option in '' c u; do
			ls -lnisa$time_option --full-time -- "${1%/}/"
			printf '\035%s' "$listing_mark"
		done
	} 2>&1 >&3)
	printf '%s' "$output"
	answer 0
}

# print_version_line, set_ctime_words and print_size_word have the words of one line of `ls -lnid
# --full-time` as arguments: inode, mode, links, owner, group, size, date, time, and more.
print_version_line() {
	inode=$1 mode_letters=$2 uid=$4 gid=$5 size=$6 date=$7 clock=${8%.000000000}
	set_symbolic_mode "$mode_letters"
	printf '%s %s %s %s%s|%s %s:%s\n' "$inode" "$size" "$date" "$clock" "$ctime_words" \
		"$symbolic_mode" "$uid" "$gid"
}
set_ctime_words() { ctime_words=" $7 ${8%.000000000}"; }
print_size_word() { printf '%s\n' "$6"; }

# set_symbolic_mode MODE: sets `symbolic_mode` to the mode that ls prints, in the notation of chmod.
set_symbolic_mode() {
	symbolic_mode='' letters=${1#?}
	for class in u g o; do
		triplet=${letters%"${letters#???}"}
		letters=${letters#???}
		symbolic_mode=$symbolic_mode${symbolic_mode:+,}$class=
		case $triplet in r??) symbolic_mode=${symbolic_mode}r ;; esac
		case $triplet in ?w?) symbolic_mode=${symbolic_mode}w ;; esac
		case $triplet in ??[xst]) symbolic_mode=${symbolic_mode}x ;; esac
		case $triplet in
		??[sS]) symbolic_mode=${symbolic_mode}s ;;
		??[tT]) symbolic_mode=$symbolic_mode,+t ;;
		esac
	done
}

# print_versions FOLLOW WITH_CTIME [TEMP] TARGET: one ls prints both files, in an order of its own.
# The line of TEMP is the one that ends with its name, which has no newline.
# shellcheck disable=SC2046,SC2086
print_versions() (
	set -f
	follow_option=$1 with_ctime=$2 ctime_words=
	shift 2
	rest=$(ls -lnid$follow_option --full-time -- "$@")
	if [ $# = 2 ]; then
		first_line=${rest%%"$newline"*}
		case $first_line in
		*" $1") print_version_line $first_line; rest=${rest#"$first_line"} ;;
		*) print_version_line ${rest##*"$newline"}; rest=${rest%"$newline"*} ;;
		esac
		shift
	fi
	[ -n "${rest#"$newline"}" ] || return
	if [ -n "$with_ctime" ]; then set_ctime_words $(ls -lnidc$follow_option --full-time -- "$1"); fi
	print_version_line $rest
)
# shellcheck disable=SC2046
print_size() (
	set -f
	print_size_word $(ls -lnidL --full-time -- "$1")
)
print_fs() { df -Pk -- "$1"; }

print_fs_type() { print_mounts // "$1"; }

hard_link() { portable_link "$1" "$2"; }

# list_small_directory MAX_NAMES DIR: answers as list_directory, unless there are more names.
list_small_directory() {
	max_names=$1 directory=$2
	set -- "$directory"/*
	if [ $# -gt "$max_names" ]; then answer 1; return; fi
	list_directory "$directory"
}
