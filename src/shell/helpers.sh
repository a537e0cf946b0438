# The helper functions of a resident shell, for any POSIX shell.
#
# A resident shell defines them once: this file and the files of the host's userland at its start,
# `helpers/content.sh` in front of its first request. The preamble in resident.rs sets before them:
#   token         marks the end of an answer; never an argument of a program, because other users
#                 can read those
#   listing_mark  separates the records of a listing
#   newline       a newline
#   CONFLICT ...  the statuses of src/shell/status.rs
# The first resident shell runs `helpers/probe.sh` at its start, which finds out the following, and
# defines its userland later; the other shells get the results:
#   userland       `gnu`, `busybox`, `bsd` or `ls`
#   mv_option      the options of mv against moving into a directory: `-fT`; `-Tf` if mv has that,
#                  but does not use rename(2) for every kind of file; `-fh` if mv only does not move
#                  into a symlink to a directory; `-f` if it has none
#   ln_option      the option of ln against linking into a directory: `-T`, `-h` or empty
#   touch_option   the option of touch against following symlinks: `-h` or empty
#   has_truncate   y: there is a truncate program
#   has_scp        y: content is transferred by scp
#   byte_counter   copies an exact number of bytes: `dd`; `head`; or `slow`, which is dd with blocks
#                  of one byte
#   has_fd_dir     y: open descriptors have names under /proc/PID/fd
#   cp_attributes  y: cp copies all attributes of a file; c: the SELinux context as well
#   ls_shows_acl   y: ls marks files that have an ACL
# Each answer is the output of a helper function, then RS (\036), the token, a space, a status, a
# newline. Lines that begin with `#` are not sent.
#
# The files of a userland define
#   print_stats PATH...  prints the attributes of each path
#   list_directory DIR   answers with a listing
#   list_trees MAX_BYTES DIR...  answers with the records of directories and all that is below them
#                        on the same filesystem; `ls` has list_small_directory MAX_NAMES DIR in its
#                        place, which answers as list_directory, or with status 1
#   print_versions FOLLOW WITH_CTIME PATH...  prints for each path: its version, with the ctime if
#                        WITH_CTIME is not empty; a bar; its permissions, a space, UID:GID. Follows
#                        symlinks if FOLLOW is not empty
#   print_size PATH      prints the size of a file; follows symlinks
#   print_fs PATH        prints the size and the free space of a filesystem
#   print_fs_type PATH   prints the type of a filesystem
#   hard_link OLD NEW    makes a hard link
#
# All variables are global, because POSIX sh has no local ones. `output` and `status` are what the
# last command printed and its exit status; any function may change them.
# shellcheck disable=SC2154

# Undoes what the login may have set in the environment.
set +efuvxC
export LC_ALL=C TZ=UTC0
unset CDPATH POSIXLY_CORRECT TIME_STYLE LS_COLORS BLOCK_SIZE DF_BLOCK_SIZE QUOTING_STYLE
unset GREP_OPTIONS
# TMOUT would end an idle shell.
unset TMOUT
unalias -a
unset -f cat chmod chown cmp cp dd df find flock fsync head id ln ls mkdir mkfifo mknod mv perl \
	python3 readlink rm rmdir scp sha256sum sleep stat sync touch truncate uname xargs
PATH=$PATH:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
umask 077
exec 2>/dev/null 3>&1

# answer STATUS: ends an answer.
answer() { printf '\036%s %d\n' "$token" "$1"; }

# run COMMAND...: runs a command. If it fails, answers with its output and status, and fails.
run() { "$@" 2>&1 </dev/null || { answer $?; return 1; }; }

# answer_stats PATH...: answers with the attributes of the paths, one line each. Missing paths have
# no line.
answer_stats() { print_stats "$@"; answer 0; }

# answer_stat PATH: answers with the attributes of a path, or with the error.
answer_stat() { print_stats "$1" 2>&1; answer $?; }

# set_owner OWNER PATH: sets the owner of a new file; an empty OWNER changes nothing.
set_owner() { [ -z "$1" ] || run chown -h "$1" -- "$2"; }

# kill_shell PID WORD: kills the resident shell of an abandoned connection and its process group, so
# that it carries out no request that arrives late. WORD is in the arguments of that shell: it
# proves that PID was not reused.
kill_shell() {
	command_line=
	[ ! -r "/proc/$1/cmdline" ] || IFS= read -r command_line <"/proc/$1/cmdline"
	case $command_line in *"$2"*) kill -9 -- "-$1" || kill -9 "$1" ;; esac
}

# exists PATH: succeeds if the path exists, a dangling symlink included.
exists() { [ -e "$1" ] || [ -h "$1" ]; }

# print_error TEXT: prints an error message in the form that programs use; fails.
print_error() {
	printf ': %s\n' "$1"
	return 1
}

# rename_to FROM TO: renames; never moves into a directory.
rename_to() {
	if [ "$mv_option" = -fT ]; then
		mv -fT -- "$1" "$2"
		return
	fi
	if [ -d "$2" ] && ! [ -h "$2" ]; then
		# Linux rename(2) returns ENOTEMPTY if TO is a directory above FROM.
		case $1/ in "$2"/*) print_error 'Directory not empty'; return ;; esac
		if ! [ -d "$1" ] || [ -h "$1" ]; then print_error 'Is a directory'; return; fi
		# POSIX rename(): only an empty directory is replaced, and TO must not be below FROM.
		case $2/ in "$1"/*) print_error 'Invalid argument'; return ;; esac
		rmdir -- "$2" || return
	elif [ -d "$1" ] && ! [ -h "$1" ] && exists "$2"; then
		print_error 'Not a directory'
		return
	elif [ "$mv_option" != -fh ] && [ -h "$2" ] && [ -d "$2" ] && exists "$1"; then
		# mv would follow a symlink to a directory; the mv of BusyBox refuses one with -T.
		rm -f -- "$2" || return
	fi
	output=$(mv "$mv_option" -- "$1" "$2" 2>&1) && return
	status=$?
	case $output in
	# The mv of BusyBox fails if TO is a symlink to itself.
	*' loop'* | *'Too many'*link*)
		if [ -h "$2" ] && ! [ -e "$2" ] && exists "$1"; then
			rm -f -- "$2" && mv "$mv_option" -- "$1" "$2"
			return
		fi
		;;
	esac
	printf '%s\n' "$output"
	return $status
}

# link_name_is_free PATH: succeeds if ln can make the name; without -T or -h ln would link into a
# directory.
link_name_is_free() { [ "$ln_option" = -T ] || ! exists "$1" || print_error 'File exists'; }

# make_symlink TARGET PATH: makes a symlink.
# shellcheck disable=SC2086
make_symlink() { link_name_is_free "$2" && ln -s $ln_option -- "$1" "$2"; }

# portable_link OLD NEW: makes a hard link, for an ln that follows no symlinks.
# shellcheck disable=SC2086
portable_link() { link_name_is_free "$2" && ln $ln_option -- "$1" "$2"; }

# set_size SIZE PATH: truncates a file, or extends it by a hole.
set_size() {
	if [ -n "$has_truncate" ]; then
		truncate -c -s "$1" -- "$2"
	elif ! exists "$2"; then
		print_error 'No such file or directory'
	elif ! [ -f "$2" ]; then
		print_error 'Invalid argument'
	else
		# POSIX dd: without conv=notrunc the file ends at the offset of seek=.
		output=$(dd if=/dev/null of="$2" bs=1 seek="$1" count=0 2>&1) && return
		printf '%s\n' "$output"
		return 1
	fi
}

# require_version EXPECTED PATH: succeeds if the file has that version, as `print_versions` prints
# it; else answers with CONFLICT or with an error, and fails.
require_version() {
	with_ctime=
	case $1 in 'c '*) with_ctime=c ;; esac
	output=$(print_versions '' "$with_ctime" "$2" 2>&1)
	[ "${output%"|"*}" != "${1#c }" ] || return 0
	if exists "$2"; then answer "$CONFLICT"; else printf '%s\n' "$output"; answer 1; fi
	return 1
}

# set_times OPTIONS STAMP PATH: sets times; an empty STAMP is the current time.
# shellcheck disable=SC2086
set_times() {
	if [ -z "$touch_option" ] && [ -h "$3" ]; then print_error 'Operation not supported'; return; fi
	touch -c $touch_option $1 $2 -- "$3"
}

# Permissions of new files are set by the umask, not by chmod, because chmod would change an
# inherited ACL. chmod adds only what a creation cannot set. Files for another owner have no
# permissions for group and others before their owner is set.

# add_execute_bits MODE PATH: adds the execute and special bits of a mode to a new file.
add_execute_bits() {
	additions=
	case $1 in ?[1357]??) additions=,u+x ;; esac
	case $1 in ??[1357]?) additions=$additions,g+x ;; esac
	case $1 in ???[1357]) additions=$additions,o+x ;; esac
	add_special_bits "$1" "$2"
}

# add_special_bits MODE PATH: adds the special bits of a mode, and the bits that are in `additions`
# already.
add_special_bits() {
	case $1 in [4567]???) additions=$additions,u+s ;; esac
	case $1 in [2367]???) additions=$additions,g+s ;; esac
	case $1 in [1357]???) additions=$additions,+t ;; esac
	[ -z "$additions" ] || run chmod "${additions#,}" -- "$2"
}

# set_owner_and_mode OWNER MODE PATH: sets the owner of a new file, then its permissions.
set_owner_and_mode() { run chown -h "$1" -- "$3" && run chmod "$2" -- "$3"; }

# make_directory MASK MODE OWNER PATH: makes a directory.
make_directory() {
	new_mask=$1 new_mode=$2 new_owner=$3 new_path=$4
	umask "$new_mask"
	run mkdir -- "$new_path"
	status=$?
	umask 077
	[ $status = 0 ] || return
	additions=
	if [ -n "$new_owner" ]; then
		set_owner_and_mode "$new_owner" "$new_mode" "$new_path"
	else
		add_special_bits "$new_mode" "$new_path"
	fi
}

# make_node MASK MODE OWNER PATH: makes a FIFO.
# make_node MASK MODE OWNER PATH TYPE MAJOR MINOR: makes a device.
make_node() {
	new_mask=$1 new_mode=$2 new_owner=$3 new_path=$4
	shift 4
	umask "$new_mask"
	if [ $# = 0 ]; then run mkfifo -- "$new_path"; else run mknod -- "$new_path" "$@"; fi
	status=$?
	umask 077
	[ $status = 0 ] || return
	if [ -n "$new_owner" ]; then
		set_owner_and_mode "$new_owner" "$new_mode" "$new_path"
	elif [ $# = 0 ]; then
		add_execute_bits "$new_mode" "$new_path"
	else
		# Some mknod ignore the umask.
		run chmod "$new_mode" -- "$new_path"
	fi
}

# remove_orphans DIR TAG: removes the temporary files of ended uploads whose names contain TAG.
remove_orphans() {
	for orphan in "$1"/.scpfs-"$2"????????.tmp; do
		[ ! -f "$orphan" ] || rm -f -- "$orphan"
	done
	answer 0
}

# make_socket NAME PARENT: makes a socket with perl or python3, because no shell can. It is bound to
# a short name in its directory and then renamed, because a socket address has room for 107 bytes
# (unix(7)).
make_socket() (
	cd -- "$2" || exit 1
	if exists "./$1"; then
		echo ': File exists'
		exit 1
	fi
	socket=.scpfs-$$.sock
	if perl -e 1 2>/dev/null; then
		perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0) && bind(S, sockaddr_un($ARGV[0])) or die ": $!\n"' -- "$socket" || exit 1
	elif python3 -c '' 2>/dev/null; then
		python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])' "$socket" || exit 1
	else
		echo ': Operation not supported'
		exit 1
	fi
	rename_to "$socket" "./$1"
)

# create_file MASK MODE OWNER PATH PARENT: creates an empty file under a name that must be free.
create_file() {
	new_mask=$1 new_mode=$2 new_owner=$3 new_path=$4 new_parent=$5
	if exists "$new_path"; then answer "$EXISTS"; return; fi
	made=
	umask "$new_mask"
	set -C
	{ made=1; } 8>"$new_path"
	set +C
	umask 077
	if [ -z "$made" ]; then
		if exists "$new_path"; then answer "$EXISTS"; return; fi
		# Shells report failed redirections in different words; the message of touch is the same
		# everywhere.
		run touch -- "$new_path" || return
	fi
	if [ -n "$new_owner" ]; then
		set_owner_and_mode "$new_owner" "$new_mode" "$new_path" || return
	else
		case $new_mode in
		?[0145]??) run chmod "$new_mode" -- "$new_path" || return ;;
		*) add_execute_bits "$new_mode" "$new_path" || return ;;
		esac
	fi
	answer_stats "$new_path" "$new_parent"
}

# rename_no_replace OLD_PATH NEW_PATH OLD_PARENT NEW_PARENT: renames, unless the new name exists.
# This is atomic with GNU mv, which prints what it renamed, and where a hard link can be made.
# Otherwise another client could create the name between the check and the rename.
rename_no_replace() {
	old_path=$1 new_path=$2 old_parent=$3 new_parent=$4
	if exists "$new_path"; then answer "$EXISTS"; return; fi
	if [ "$mv_option" = -fT ]; then
		output=$(mv -nTv -- "$old_path" "$new_path" 2>&1)
		status=$?
		case $output in
		'renamed '*) ;;
		*)
			if exists "$new_path" && exists "$old_path"; then answer "$EXISTS"; return; fi
			[ $status != 0 ] || status=1
			printf '%s\n' "$output"
			answer $status
			return
			;;
		esac
	elif [ -f "$old_path" ] && ! [ -h "$old_path" ] &&
		output=$(hard_link "$old_path" "$new_path" 2>&1 </dev/null); then
		run rm -f -- "$old_path" || return
	elif exists "$new_path"; then
		answer "$EXISTS"
		return
	else
		run rename_to "$old_path" "$new_path" || return
	fi
	answer_stats "$new_path" "$old_parent" "$new_parent"
}
