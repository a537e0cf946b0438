# Uploads and fetches; the host's half of content.rs, plain.rs and pieces.rs.
#
# An upload is a line that sets these variables and ends with `upload_scp`, `upload_plain`,
# `finish_pieces` or `copy_file`:
#   method         `replace`: rename the temporary file over the target (atomic replace);
#                  `in_place`: write the content of the temporary file into the target; `append`:
#                  append it; `direct`: write into the target without a temporary file
#   temp           the temporary file
#   path           the target
#   parent         its directory
#   expected       what the target must be: `-` anything, `0` absent, or a version as
#                  `print_versions` prints it, with `c ` before it if it includes the ctime
#   owner          `UID:GID` of a new file; empty: do not set it
#   mode           the permissions of a new file, four octal digits
#   sets_mode      y: set them on an existing file as well; empty: it keeps its own
#   mask           the umask under which the temporary file is made
#   stamp          the option of touch that sets the mtime; empty: scp sets it
#   durable        y: flush to disk before the answer
#   conflict_copy  the name of the conflict copy; empty: fail on a conflict
#   exclusive      y: a target that exists is a conflict even if it has the same content
#   minute         a number that changes once a minute
#
# Content is written to open descriptors, never to names, because another user could replace a name
# by another file. Descriptor 9 is the temporary file and 7 the target. $fd_dir/9 is the same file,
# for programs that need a name. The name contains the PID of the shell, because some shells close
# their descriptors in child processes. Without /proc `fd_dir` is empty, and names are used.
# shellcheck disable=SC2094,SC2154,SC3013

fd_dir=${has_fd_dir:+/proc/$$/fd}
acl_key='' pieces_temp=''

# is_special PATH: succeeds if the path must not be opened because it is no regular file; opening a
# FIFO would block.
is_special() { exists "$1" && ! [ -f "$1" ]; }

# is_plain_file PATH: succeeds if the path is a regular file and no symlink.
is_plain_file() { [ -f "$1" ] && ! [ -h "$1" ]; }

# is_open_as PATH NUMBER: succeeds if the path is the regular file that is open as descriptor
# NUMBER; without /proc, if it is any regular file.
is_open_as() { is_plain_file "$1" && { [ -z "$fd_dir" ] || [ "$1" -ef "$fd_dir/$2" ]; }; }

# fetch_scp PATH: sends a file by scp, then its attributes.
fetch_scp() {
	if is_special "$1"; then
		# The error record of scp. The scp of dropbear would block on a FIFO.
		printf '\001%s: not a regular file\n' "$1"
		answer 1
		return
	fi
	scp -p -f "$1"
	status=$?
	print_stats "$1"
	note_unwritable "$1"
	answer "$status"
}

# fetch_files DIRECTORY/ NAME...: sends files by one scp, answers with its status, then answers with
# the attributes of all. A name is in the directory before it; there may be several directories,
# each with a slash at its end.
fetch_files() {
	arguments_left=$#
	while [ $arguments_left -gt 0 ]; do
		case $1 in
		*/) directory=$1 ;;
		*)
			# The scp of dropbear would block on a FIFO.
			if is_special "$directory$1"; then answer 1; answer 1; return; fi
			set -- "$@" "$directory$1"
			;;
		esac
		shift
		arguments_left=$((arguments_left - 1))
	done
	scp -p -f "$@"
	answer $?
	answer_stats "$@"
}

# note_unwritable PATH: changes a `status` of 0 to UNWRITABLE if the login user cannot write to the
# file.
note_unwritable() { [ "$status" != 0 ] || [ -w "$1" ] || status=$UNWRITABLE; }

# fetch_plain PATH: sends a file without scp: its attributes, READY, the content, READY, its
# attributes.
fetch_plain() {
	if is_special "$1"; then
		print_error 'not a regular file'
		answer 1
		return
	fi
	print_stats "$1" 2>&1 || { answer $?; return; }
	answer "$READY"
	output=$(cat -- "$1" 2>&1 >&3 </dev/null)
	status=$?
	answer "$READY"
	if [ $status = 0 ]; then print_stats "$1"; else printf '%s\n' "$output"; fi
	note_unwritable "$1"
	answer "$status"
}

# fetch_blocks PATH FIRST COUNT: sends blocks of 64 KiB of a file: its attributes, READY, the content,
# READY, its attributes.
fetch_blocks() {
	if is_special "$1"; then
		print_error 'not a regular file'
		answer 1
		return
	fi
	print_stats "$1" 2>&1 || { answer $?; return; }
	answer "$READY"
	output=$(dd if="$1" bs=65536 skip="$2" count="$3" 2>&1 >&3 </dev/null)
	status=$?
	answer "$READY"
	if [ $status = 0 ]; then print_stats "$1"; else printf '%s\n' "$output"; fi
	answer "$status"
}

# fetch_unsized PATH: sends a file of /proc or /sys, whose size is not known before.
fetch_unsized() { cat -- "$1" </dev/null; status=$?; answer $status; }

# fail STATUS: ends a failed upload, and the shell, so that the rest of the content is not run as
# commands. A STATUS of a program that equals one of a successful upload is replaced by 1.
fail() {
	case $1 in
	0 | "$READY" | "$MADE_CONFLICT_COPY" | "$RECREATED" | "$SAME_CONTENT") set -- 1 ;;
	"$TIMES_NOT_SET" | "$TEMP_NOT_REMOVED") set -- 1 ;;
	esac
	remove_temp
	answer "$1"
	exit 1
}

# remove_temp: removes the temporary file. If the directory does not permit that, truncates it,
# unless the target or the conflict copy is a hard link to it.
remove_temp() {
	is_open_as "$temp" 9 || return 0
	rm -f -- "$temp" && return
	case $result in 0 | "$TIMES_NOT_SET") result=$TEMP_NOT_REMOVED ;; esac
	[ -z "$fd_dir" ] || [ "$temp" -ef "$path" ] || [ "$temp" -ef "$final_path" ] ||
		true >"$upload_file"
}

# run_or_fail COMMAND...: runs a command of an upload; if it fails, the upload fails.
run_or_fail() { "$@" 2>&1 </dev/null || fail $?; }

# close_files: closes the files of an upload.
close_files() { exec 7>&- 9>&-; }

# make_temp: creates the temporary file, whose name must be free, and opens it as descriptor 9. Sets
# `upload_file` to the name to write to.
make_temp() {
	made=
	umask "$mask"
	set -C
	{ made=1; exec 9>&8; } 8>"$temp"
	set +C
	umask 077
	upload_file=${fd_dir:+$fd_dir/9}
	upload_file=${upload_file:-$temp}
	if [ -n "$made" ]; then
		is_open_as "$temp" 9 || fail "$FILE_REPLACED"
		return
	fi
	# Shells report failed redirections in different words; the message of touch is the same
	# everywhere.
	if output=$(touch -- "$temp" 2>&1); then rm -f -- "$temp"; output=': Input/output error'; fi
	# The error record of scp begins with \001.
	[ "$received_by" != scp ] || printf '\001'
	printf '%s\n' "$output"
	case $output in
	*'not permitted' | *'ermission denied') ! is_plain_file "$path" || fail "$NO_TEMP" ;;
	esac
	fail 1
}

# begin_upload: makes the temporary file. Initializes `result`, the status of the upload;
# `final_path` and `final_descriptor`, the file that has the content in the end; `created_mode`, set
# if the mode depends on a default ACL; `opened`, set if the target is open.
begin_upload() {
	result=0 final_path=$path final_descriptor=9 created_mode='' opened=''
	make_temp
	if [ "$expected" = 0 ] && [ -z "$owner" ] && has_default_acl; then
		created_mode=$(print_versions '' '' "$temp")
		created_mode=${created_mode##*"|"}
	fi
}

# has_default_acl: succeeds if new files inherit an ACL from their directory. Runs ls at most once
# a minute for the same directory.
has_default_acl() {
	[ -n "$ls_shows_acl" ] || return
	if [ "$acl_key" != "$minute $parent" ]; then
		acl_key="$minute $parent" parent_has_acl=
		! has_acl "$parent" || parent_has_acl=1
	fi
	[ -n "$parent_has_acl" ]
}

# has_acl PATH: succeeds if ls marks a file as one with an ACL.
has_acl() {
	[ -n "$ls_shows_acl" ] || return
	case $(ls -ld -- "$1") in ??????????[+@]*) return 0 ;; esac
	return 1
}

# upload_scp SIZE: receives a file by scp.
upload_scp() {
	received_by=scp
	begin_upload
	scp -p -t "$upload_file" || fail $?
	[ "$1" = 0 ] || [ -s "$upload_file" ] || fail "$INCOMPLETE"
	finish_upload
}

# copy_exactly COUNT: copies COUNT bytes of its input. `head` may read more than it copies, so that
# nothing may follow the content.
copy_exactly() {
	case $byte_counter in
	dd) dd bs=65536 count="$1" iflag=fullblock,count_bytes ;;
	# On a full disk the error message of BusyBox head gives no reason; that of cat does.
	head) head -c "$1" 2>/dev/null | cat ;;
	*) dd bs=1 count="$1" ;;
	esac
}

# upload_plain SIZE ATIME: receives a file without scp. Answers READY when the file is open. ATIME
# is an option of touch.
upload_plain() {
	received_by=shell
	if [ "$method" = direct ]; then begin_direct; else begin_upload; fi
	redirected='' status=1
	{
		redirected=1
		[ "$final_descriptor" = 9 ] || set_mode_before_content "$upload_file"
		answer "$READY"
		output=$(copy_exactly "$1" 2>&1 >&4)
		status=$?
	} 4>"$upload_file"
	if [ -z "$redirected" ]; then
		print_open_error "$upload_file"
		fail 1
	fi
	if [ $status != 0 ] || [ "$(print_size "$upload_file")" != "$1" ]; then
		printf '%s\n' "$output"
		[ "$final_descriptor" = 9 ] || fail "$PARTIAL"
		[ $status != 0 ] || status=1
		fail $status
	fi
	[ "$final_descriptor" != 9 ] || run_or_fail touch -c -a "$2" -- "$upload_file"
	if [ "$method" = direct ]; then finish_direct; else finish_upload; fi
}

# begin_direct: opens the target itself as `upload_file`, or creates it under its own name if it is
# absent.
begin_direct() {
	if ! exists "$path"; then
		case $expected in - | 0) temp=$path; begin_upload; return ;; esac
		fail "$CONFLICT"
	fi
	result=0 final_path=$path temp='' opened=''
	[ "$expected" != 0 ] || fail "$CONFLICT"
	if [ -d "$path" ]; then print_error 'Is a directory'; fail 1; fi
	if is_special "$path"; then print_error 'Invalid argument'; fail 1; fi
	open_target || { print_open_error "$path"; fail 1; }
	lock_target
	final_descriptor=7 upload_file=$path
	[ -z "$fd_dir" ] || upload_file=$fd_dir/7
	target_is_expected || fail "$CONFLICT"
}

# finish_direct: sets mode and times after the content of a direct upload, and answers.
finish_direct() {
	if [ "$final_descriptor" = 9 ]; then
		set_new_attributes
		[ -z "$stamp" ] || run_or_fail touch -c -m "$stamp" -- "$upload_file"
	else
		set_mode_after_content "$upload_file"
		touch -c -m "$stamp" -- "$upload_file" || result=$TIMES_NOT_SET
	fi
	if [ -n "$durable" ] && ! flush "$upload_file"; then
		[ "$final_descriptor" = 9 ] || fail "$PARTIAL"
		fail 1
	fi
	# From here on the new file is not a temporary file: `fail` must not remove it.
	[ "$final_descriptor" != 9 ] || { temp=''; flush_parent; }
	answer_upload
}

# print_open_error PATH: prints why a file cannot be opened for writing.
print_open_error() { dd if=/dev/null of="$1" bs=1 count=0 conv=notrunc 2>&1 </dev/null; }

# copy_file SOURCE: copies a file on the host.
copy_file() {
	received_by=shell
	begin_upload
	if is_special "$1"; then print_error 'Invalid argument'; fail 1; fi
	if [ -n "$cp_attributes" ]; then
		run_or_fail cp -- "$1" "$upload_file"
	else
		output=$(cat -- "$1" 2>&1 >&9 </dev/null) || { status=$?; printf '%s\n' "$output"; fail $status; }
	fi
	finish_upload
}

# begin_pieces: makes the temporary file for an upload in pieces, and prints the PID under which
# other resident shells find it. It is removed if this shell ends before `finish_pieces`, which
# includes a broken connection.
begin_pieces() {
	received_by=shell
	begin_upload
	pieces_temp=$temp
	trap '[ -z "$pieces_temp" ] || remove_temp' EXIT
	trap 'exit 1' HUP PIPE TERM
	pieces_file=$upload_file
	printf '%s\n' "$$"
}

# join_pieces TEMP PID: prepares another resident shell for pieces of the file that process PID has
# open.
join_pieces() {
	temp='' pieces_file=$1
	[ -z "$fd_dir" ] || [ ! -e "/proc/$2/fd/9" ] || pieces_file=/proc/$2/fd/9
}

# copy_piece OFFSET LENGTH BLOCK: copies LENGTH bytes of its input to OFFSET of its output.
copy_piece() { dd bs="$3" seek="$1" count="$2" iflag=fullblock,count_bytes oflag=seek_bytes; }

# receive_piece OFFSET LENGTH RECORDS: receives a piece. Answers READY when it is ready to read.
# After a complete piece it prints nothing; the answer to the next request confirms it. RECORDS is
# what dd must report: FULL+PARTIAL.
receive_piece() {
	# Fails if the file is gone, because the redirection would create it again.
	[ -f "$pieces_file" ] || fail "$INCOMPLETE"
	output=
	# dd succeeds at an early end of its input, but the records that it reports show it.
	if { answer "$READY"; output=$(copy_piece "$1" "$2" 65536 2>&1 >&4); } 4<>"$pieces_file"; then
		case $output in "$3 records in$newline$3 records out"*) return ;; esac
	fi
	# Before the first output, because SIGPIPE ends the shell if the connection is broken.
	remove_temp
	printf '%s\n' "${output%%"$newline"*}"
	fail 1
}

# finish_pieces SIZE ATIME: gives a file whose pieces are complete its final name. Ranges for which
# no piece was sent are holes.
finish_pieces() {
	if [ -n "$has_truncate" ] && [ "$(print_size "$upload_file")" != "$1" ]; then
		run_or_fail truncate -c -s "$1" -- "$upload_file"
	fi
	[ "$(print_size "$upload_file")" = "$1" ] || fail "$INCOMPLETE"
	run_or_fail touch -c -a "$2" -- "$upload_file"
	finish_upload
}

# abandon_pieces TEMP: removes the temporary file of an upload in pieces that failed.
abandon_pieces() {
	pieces_temp=
	close_files
	rm -f -- "$1"
	answer 0
}

# flush PATH: flushes a file to disk. Succeeds as well if the host has no program for that.
flush() {
	output=$(sync -- "$1" 2>&1 </dev/null) && return
	case $?:$output in
	12[67]:* | *sage:* | *' option'* | *'extra operand'*) ;;
	*) printf '%s\n' "$output"; return 1 ;;
	esac
	output=$(fsync "$1" 2>&1 </dev/null) && return
	case $?:$output in 12[67]:*) return 0 ;; esac
	printf '%s\n' "$output"
	return 1
}

# open_target: opens the target as descriptor 7, without changing it.
open_target() {
	{ opened=1; exec 7<&8; } 8<"$path"
	[ -n "$opened" ] || { opened=1; exec 7>&8; } 8>>"$path"
	[ -n "$opened" ]
}

# lock_target: locks descriptor 7, if the host has flock. Another mount that uploads the file has
# the lock for a moment; after five seconds the upload goes on without it, because any program may
# lock the file for other reasons.
# shellcheck disable=SC2034
lock_target() {
	for attempt in 1 2 3 4 5; do
		flock -n 7 7<&7
		[ $? = 1 ] || return
		sleep 1
	done
}

# look_at_target: sets `target_version` and `target_attributes`, and `temp_attributes` of the
# temporary file. An open target is examined through its descriptor.
look_at_target() {
	with_ctime='' temp_attributes=''
	case $expected in 'c '*) with_ctime=c ;; esac
	if [ -z "$opened" ] || [ -z "$fd_dir" ]; then
		versions=$(print_versions '' "$with_ctime" ${temp:+"$temp"} "$path")
	else
		versions=$(print_versions L "$with_ctime" ${temp:+"$temp"} "$fd_dir/7")
	fi
	if [ -n "$temp" ]; then
		temp_attributes=${versions%%"$newline"*}
		temp_attributes=${temp_attributes##*"|"}
		case $versions in *"$newline"*) versions=${versions#*"$newline"} ;; *) versions= ;; esac
	fi
	target_version=${versions%"|"*} target_attributes=${versions##*"|"}
}

# target_is_expected: the conflict check: succeeds if the target is what `expected` says. If stat
# prints nothing for an existing file, perhaps because it was killed, tries once more; a second
# failure is an I/O error, not a conflict.
target_is_expected() {
	target_attributes='' temp_attributes=''
	if [ "$expected" = 0 ]; then
		! exists "$path"
		return
	fi
	look_at_target
	case $target_version in *[0-9]*) ;; *) look_at_target ;; esac
	case $target_version in
	*[0-9]*) ;;
	*)
		[ -z "$temp" ] || is_open_as "$temp" 9 || fail "$FILE_REPLACED"
		if exists "$path"; then print_error 'Input/output error'; fail 1; fi
		;;
	esac
	if [ -n "$opened" ]; then is_open_as "$path" 7 || return; fi
	[ "$expected" = - ] || [ "$target_version" = "${expected#c }" ]
}

# finish_upload: gives a complete temporary file its final name, and answers. Mounts lock the file
# that they expect, if the host has flock, so that no other mount replaces the target between the
# conflict check and the rename.
finish_upload() {
	[ -z "$stamp" ] || run_or_fail touch -c -m "$stamp" -- "$upload_file"
	[ -z "$durable" ] || flush "$upload_file" || fail 1
	if [ "$expected" != 0 ] && is_plain_file "$path" && open_target; then lock_target; fi
	place_content
	flush_parent
	answer_upload
}

# flush_parent: flushes the directory of the target to disk, if the upload is durable. The target
# has the content already.
flush_parent() {
	[ -n "$durable" ] || return 0
	output=$(flush "$parent") && return
	# A directory without read permission cannot be opened, but names can be created in it.
	case $output in *'ermission denied') return 0 ;; esac
	printf '%s\n' "$output"
	fail "$PARTIAL"
}

# place_content: checks for a conflict, then puts the content into its place by `method`.
place_content() {
	if ! target_is_expected; then
		resolve_conflict
	elif ! exists "$path"; then
		set_new_attributes
		move_to_free_name "$path" || resolve_conflict
	elif [ -d "$path" ] && ! [ -h "$path" ]; then
		print_error 'Is a directory'
		fail 1
	elif [ "$method" != replace ]; then
		write_target
	elif [ -h "$path" ] || is_special "$path"; then
		set_new_attributes
		run_or_fail rename_to "$temp" "$path"
	elif copy_target_attributes; then
		is_open_as "$temp" 9 || fail "$FILE_REPLACED"
		output=$(rename_to "$temp" "$path" 2>&1 </dev/null) && return
		status=$?
		is_open_as "$temp" 9 || fail "$FILE_REPLACED"
		case $output in
		*'esource busy' | *'not permitted' | *'ermission denied') write_in_place ;;
		*) printf '%s\n' "$output"; fail $status ;;
		esac
	else
		write_in_place
	fi
}

# write_in_place: writes into a target that cannot be replaced.
write_in_place() {
	method=in_place
	target_is_expected || fail "$CONFLICT"
	write_target
}

# set_new_attributes: sets the owner of a new file, then its permissions, so that nobody else can
# read it before.
set_new_attributes() {
	if [ -n "$owner" ]; then
		if [ -n "$fd_dir" ]; then
			run_or_fail chown "$owner" -- "$upload_file"
		else
			run_or_fail chown -h "$owner" -- "$upload_file"
		fi
	elif [ -n "$created_mode" ]; then
		# Permissions that the default ACL does not grant stay off.
		set_inherited_mode "$created_mode" "$mode"
		run_or_fail chmod "$final_mode" -- "$upload_file"
		return
	else
		# The umask or scp has set this mode already.
		case $expected$received_by$mode in 0scp0* | 0shell0[26][0246][0246]) return ;; esac
	fi
	run_or_fail chmod "$mode" -- "$upload_file"
}

# set_inherited_mode CREATED WANTED: sets `final_mode` to what a creation with mode WANTED gives in
# a directory with a default ACL, where a creation without execute bits, as a shell's, gives
# CREATED.
set_inherited_mode() {
	created_digits=$1 wanted_digits=$2 final_mode=${2%???}
	case $created_digits in ????) created_digits=${created_digits#?} ;; esac
	for _ in u g o; do
		wanted_digits=${wanted_digits#?}
		wanted_digit=${wanted_digits%"${wanted_digits#?}"}
		created_digit=${created_digits%"${created_digits#?}"}
		case $created_digit$wanted_digit in
		0[01] | 2[23] | 4[45] | 6[67]) final_mode=$final_mode$wanted_digit ;;
		*) final_mode=$final_mode$created_digit ;;
		esac
		created_digits=${created_digits#?}
	done
}

# copy_target_attributes: gives the temporary file the owner, mode, ACL and extended attributes of
# the target; fails if that is not possible. Copies them from the open target that was compared,
# because its name could lead to a setuid file by now.
copy_target_attributes() {
	preserved=
	if [ -n "$cp_attributes" ] && [ -n "$fd_dir" ] && [ -n "$opened" ]; then preserved=xattr; fi
	# cp copies an ACL only together with the mode; a mode that was changed locally must not be
	# overwritten.
	if [ -n "$preserved" ] && [ -z "$sets_mode" ]; then
		preserved=mode,$preserved
	else
		! has_acl "$path" || return
	fi
	# Unless it runs as root, cp reports no error if it cannot set the owner.
	case $preserved:$temp_attributes in
	[mx]*' 0:'*) preserved=ownership,$preserved ;;
	*)
		if [ "${target_attributes#* }" != "${temp_attributes#* }" ]; then
			if [ -n "$fd_dir" ]; then chown_option=; else chown_option=-h; fi
			# shellcheck disable=SC2086
			chown $chown_option "${target_attributes#* }" -- "$upload_file" || return
			temp_attributes=
		fi
		;;
	esac
	if [ -n "$preserved" ]; then
		[ "$cp_attributes" != c ] || preserved=$preserved,context
		cp --attributes-only --preserve="$preserved" -- "$fd_dir/7" "$upload_file" || return
		case $preserved in *mode*) return ;; esac
	fi
	final_mode=${target_attributes%% *}
	[ -z "$sets_mode" ] || final_mode=$mode
	[ "$final_mode" = "${temp_attributes%% *}" ] || run_or_fail chmod "$final_mode" -- "$upload_file"
}

# write_target: writes the content of the temporary file into the target, or appends it. Not atomic.
write_target() {
	if is_special "$path"; then print_error 'Invalid argument'; fail 1; fi
	final_descriptor=7 target_file=$path redirected=
	if [ -n "$fd_dir" ]; then target_file=$fd_dir/7; fi
	if [ -z "$opened" ] || ! [ -w "$target_file" ]; then
		print_open_error "$path"
		print_error 'Permission denied'
		fail 1
	fi
	# A retry removes the temporary file of the attempt before it, which must then fail.
	is_open_as "$temp" 9 || fail "$FILE_REPLACED"
	if [ "$method" = append ]; then
		{ redirected=1; output=$(cat -- "$upload_file" 2>&1 >&4); } 4>>"$target_file"
	else
		{
			redirected=1
			set_mode_before_content "$target_file"
			output=$(cat -- "$upload_file" 2>&1 >&4)
		} 4>"$target_file"
	fi || {
		[ -n "$redirected" ] || { print_open_error "$target_file"; fail 1; }
		printf '%s\n' "$output"
		version_before=$target_version
		look_at_target
		[ "$target_version" != "$version_before" ] || fail 1
		fail "$PARTIAL"
	}
	# A file of another user may be writable although its mode and times cannot be set.
	set_mode_after_content "$target_file"
	touch -c -r "$upload_file" -- "$target_file" || result=$TIMES_NOT_SET
	[ -z "$durable" ] || flush "$target_file" || fail "$PARTIAL"
	remove_temp
}

# set_mode_before_content PATH: sets a mode that was changed locally before content is written, so
# that nobody reads the new content under the old mode. Leaves out the special bits, because the old
# content may be another user's.
set_mode_before_content() { [ -z "$sets_mode" ] || chmod "0${mode#?}" -- "$1"; }

# set_mode_after_content PATH: sets the special bits, which the kernel clears on a write, or the
# whole mode for an append.
set_mode_after_content() {
	[ -n "$sets_mode" ] || return
	case $method$mode in append* | *[!0]???) chmod "$mode" -- "$1" ;; esac
}

# has_same_content: succeeds if the target has the content of the temporary file, and did not change
# during the comparison. Fails if the host has no program to compare them.
has_same_content() {
	look_at_target
	version_before=$target_version
	cmp -s -- "$upload_file" "$path"
	case $? in
	0) ;;
	127) output=$(sha256sum <"$upload_file") && [ "$output" = "$(sha256sum <"$path")" ] || return ;;
	*) return 1 ;;
	esac
	look_at_target
	[ "$target_version" = "$version_before" ]
}

# resolve_conflict: decides what becomes of complete content that must not replace the target. Sets
# `result` and `final_path`: creates the target again if it is gone; leaves it if it has the same
# content; else makes a conflict copy, whose name must be free.
resolve_conflict() {
	[ "$method" != append ] || fail "$CONFLICT"
	# The file that was open is not of interest any more, only the one that has the name now.
	opened=
	if ! exists "$path"; then
		result=$RECREATED
	elif [ -z "$exclusive" ] && is_plain_file "$path" && has_same_content; then
		[ -z "$durable" ] || flush "$path" || fail 1
		remove_temp
		result=$SAME_CONTENT
		return
	else
		result=$MADE_CONFLICT_COPY final_path=$conflict_copy
	fi
	[ -n "$conflict_copy" ] || fail "$CONFLICT"
	# The attributes of the file that has the name are not copied: another user may have put it
	# there to read this.
	set_new_attributes
	move_to_free_name "$final_path" || fail "$CONFLICT"
}

# move_to_free_name NAME: renames the temporary file to a free name, atomically if possible; fails
# if the name is taken. GNU `mv -n` calls renameat2(RENAME_NOREPLACE). Elsewhere only a hard link
# checks and creates in one step.
move_to_free_name() {
	final_descriptor=9
	if [ "$method" = direct ]; then return; fi
	if [ "$mv_option" = -fT ]; then
		output=$(mv -nT -- "$temp" "$1" 2>&1)
	elif output=$(hard_link "$temp" "$1" 2>&1 </dev/null); then
		rm -f -- "$temp"
	elif ! exists "$1"; then
		# The filesystem has no hard links.
		output=$(rename_to "$temp" "$1" 2>&1 </dev/null)
	fi
	status=$?
	# If the name is taken, some mv print nothing and succeed, others fail.
	if is_open_as "$1" 9 && { ! exists "$temp" || [ "$1" -ef "$temp" ]; }; then
		remove_temp
		return 0
	fi
	! exists "$1" || return 1
	is_open_as "$temp" 9 || fail "$FILE_REPLACED"
	[ $status != 0 ] || { status=$FILE_REPLACED; output=; }
	printf '%s\n' "$output"
	fail "$status"
}

# answer_upload: answers a successful upload, after a check that the final name leads to the file
# that has the content.
answer_upload() {
	print_stats "$final_path" "$parent"
	[ "$result" = "$SAME_CONTENT" ] || is_open_as "$final_path" "$final_descriptor" ||
		fail "$FILE_REPLACED"
	close_files
	pieces_temp=
	answer "$result"
}
