# How content comes and goes; the other half of `content.rs`, `plain.rs` and `pieces.rs`.
#
# An upload is a line that sets these variables and ends with `upload`, `upload_plain`,
# `finish_pieces` or `copy`:
#   how       `replace`: a temporary file takes the name of the target; `inplace`: the target gets the
#             content of the temporary file; `append`: at its end; `direct`: without a temporary file
#   temp      the temporary file
#   path      the target
#   parent    its directory
#   expected  what the target must be: `-` anything, `0` absent, or a version as `look` prints it;
#             with `c ` before it the time of its last change counts as well
#   owner     `UID:GID` of a new file; empty: as the host gives it
#   mode      the permissions of a new file, four octal digits
#   chmod     y: a file that exists gets that mode too; empty: it keeps its own
#   mask      the umask under which the temporary file is made
#   stamp     what touch is told to set the modification time; empty: the time is set already
#   sync      y: write it to the disk before the answer
#   beside    the name of a conflict copy; empty: a conflict is refused
#   minute    changes once a minute
#
# The content goes to a descriptor, never to a name that somebody else could give to another file:
# 9 is the temporary file, 7 the target. $FD/9 is the same file for programs that want a name; by the
# number of the shell, because some shells leave their descriptors to no program. Without /proc there
# are only names.
# shellcheck disable=SC2094,SC2154,SC3013

case $FD in y) FD=/proc/$$/fd ;; esac
acl_of='' P=''

# odd PATH: whether it is something that must not be opened: a FIFO would never answer.
odd() { x "$1" && ! [ -f "$1" ]; }

# plain PATH: whether it is a regular file and no link to one.
plain() { [ -f "$1" ] && ! [ -h "$1" ]; }

# is PATH N: whether it is the regular file that descriptor N is; without /proc, whether it is one.
is() { plain "$1" && { [ -z "$FD" ] || [ "$1" -ef "$FD/$2" ]; }; }

# f PATH: sends a file; its attributes follow.
f() {
	if odd "$1"; then
		# As scp says it. The scp of dropbear would wait for somebody to write to a FIFO.
		printf '\001%s: not a regular file\n' "$1"
		a 1
		return
	fi
	scp -p -f "$1"
	s=$?
	st "$1"
	writable "$1"
	a "$s"
}

# writable PATH: has the status in s say of a file that was sent that it cannot be written.
writable() { [ "$s" != 0 ] || [ -w "$1" ] || s=$UNWRITABLE; }

# fc PATH: sends a file without scp: its attributes, READY, content, READY, its attributes.
fc() {
	if odd "$1"; then
		say 'not a regular file'
		a 1
		return
	fi
	st "$1" 2>&1 || { a $?; return; }
	a "$READY"
	e=$(cat -- "$1" 2>&1 >&3 </dev/null)
	s=$?
	a "$READY"
	if [ $s = 0 ]; then st "$1"; else printf '%s\n' "$e"; fi
	writable "$1"
	a "$s"
}

# pc PATH: sends a file whose size is not what stat says, of /proc or /sys.
pc() { cat -- "$1" </dev/null; s=$?; a $s; }

# fail STATUS: ends an upload that failed. The shell ends as well: what is left of the content must
# never be read as commands. No status of a program is taken for that of an upload that succeeded.
fail() {
	case $1 in
	0 | "$READY" | "$KEPT_BESIDE" | "$RECREATED" | "$SAME" | "$UNTIMED" | "$UNREMOVABLE") set -- 1 ;;
	esac
	remove_temp
	a "$1"
	exit 1
}

# remove_temp: removes the temporary file. Where its name cannot be removed, its content goes, unless
# the target or a conflict copy is a hard link to it.
remove_temp() {
	is "$temp" 9 || return 0
	rm -f -- "$temp" && return
	case $R in 0 | "$UNTIMED") R=$UNREMOVABLE ;; esac
	[ -z "$FD" ] || [ "$temp" -ef "$path" ] || [ "$temp" -ef "$D" ] || true >"$to"
}

# try COMMAND...: runs a command of an upload; its failure is that of the upload.
try() { "$@" 2>&1 </dev/null || fail $?; }

# release: closes the files of an upload.
release() { exec 7>&- 9>&-; }

# new_temp: makes the temporary file, which must be new, as descriptor 9.
new_temp() {
	made=
	umask "$mask"
	set -C
	{ made=1; exec 9>&8; } 8>"$temp"
	set +C
	umask 077
	to=${FD:+$FD/9}
	to=${to:-$temp}
	if [ -n "$made" ]; then
		is "$temp" 9 || fail "$UNPROVEN"
		return
	fi
	# A shell's own words for a failed redirection differ; those of touch do not.
	if e=$(touch -- "$temp" 2>&1); then rm -f -- "$temp"; e=': Input/output error'; fi
	# As scp would say it.
	[ "$by" != scp ] || printf '\001'
	printf '%s\n' "$e"
	case $e in
	*'not permitted' | *'ermission denied') ! plain "$path" || fail "$NO_TEMP" ;;
	esac
	fail 1
}

# begin: makes the file that an upload goes to.
begin() {
	R=0 D=$path n=9 created='' opened=''
	new_temp
	if [ "$expected" = 0 ] && [ -z "$owner" ] && default_acl; then
		created=$(look '' '' "$temp")
		created=${created##*"|"}
	fi
}

# default_acl: whether new files get an ACL from their directory; ls is asked once a minute.
default_acl() {
	[ -n "$LA" ] || return
	if [ "$acl_of" != "$minute $parent" ]; then
		acl_of="$minute $parent" acl=
		! extended "$parent" || acl=1
	fi
	[ -n "$acl" ]
}

# extended PATH: whether a file has more than mode bits, as far as ls tells.
extended() {
	[ -n "$LA" ] || return
	case $(ls -ld -- "$1") in ??????????[+@]*) return 0 ;; esac
	return 1
}

# upload SIZE: receives a file by scp.
upload() {
	by=scp
	begin
	scp -p -t "$to" || fail $?
	[ "$1" = 0 ] || [ -s "$to" ] || fail "$INCOMPLETE"
	put
}

# exact N: copies so many bytes of its input, not one more; where it may read more than it copies,
# nothing comes behind them.
exact() {
	case $CS in
	dd) dd bs=65536 count="$1" iflag=fullblock,count_bytes ;;
	# What BusyBox says of a full disk says nothing, unless it is cat.
	head) head -c "$1" 2>/dev/null | cat ;;
	*) dd bs=1 count="$1" ;;
	esac
}

# upload_plain SIZE ATIME: receives a file without scp. Says READY once the file is open.
upload_plain() {
	by=shell
	if [ "$how" = direct ]; then begin_direct; else begin; fi
	i='' s=1
	{
		i=1
		[ "$n" = 9 ] || protect "$to"
		a "$READY"
		e=$(exact "$1" 2>&1 >&4)
		s=$?
	} 4>"$to"
	if [ -z "$i" ]; then
		why "$to"
		fail 1
	fi
	if [ $s != 0 ] || [ "$(sz "$to")" != "$1" ]; then
		printf '%s\n' "$e"
		[ "$n" = 9 ] || fail "$PARTIAL"
		[ $s != 0 ] || s=1
		fail $s
	fi
	[ "$n" != 9 ] || try touch -c -a "$2" -- "$to"
	if [ "$how" = direct ]; then end_direct; else put; fi
}

# begin_direct: opens the target itself; makes it where it must be new.
begin_direct() {
	if ! x "$path"; then
		case $expected in - | 0) temp=$path; begin; return ;; esac
		fail "$CONFLICT"
	fi
	R=0 D=$path temp='' opened=''
	[ "$expected" != 0 ] || fail "$CONFLICT"
	if [ -d "$path" ]; then say 'Is a directory'; fail 1; fi
	if odd "$path"; then say 'Invalid argument'; fail 1; fi
	open_target || { why "$path"; fail 1; }
	lock
	n=7 to=$path
	[ -z "$FD" ] || to=$FD/7
	expected_is_there || fail "$CONFLICT"
}

# end_direct: what content does not set.
end_direct() {
	if [ "$n" = 9 ]; then
		grant
		[ -z "$stamp" ] || try touch -c -m "$stamp" -- "$to"
	else
		set_mode "$to"
		touch -c -m "$stamp" -- "$to" || R=$UNTIMED
	fi
	if [ -n "$sync" ] && ! flush "$to"; then
		[ "$n" = 9 ] || fail "$PARTIAL"
		fail 1
	fi
	# It is no temporary file any more.
	[ "$n" != 9 ] || { temp=''; flush_parent; }
	report
}

# why PATH: says why a file cannot be opened for writing.
why() { dd if=/dev/null of="$1" bs=1 count=0 conv=notrunc 2>&1 </dev/null; }

# copy SOURCE: copies a file on the host.
copy() {
	by=shell
	begin
	if odd "$1"; then say 'Invalid argument'; fail 1; fi
	if [ -n "$XA" ]; then
		try cp -- "$1" "$to"
	else
		e=$(cat -- "$1" 2>&1 >&9 </dev/null) || { s=$?; printf '%s\n' "$e"; fail $s; }
	fi
	put
}

# begin_pieces: makes the file that pieces go into, and tells how other lanes find it. It goes when
# this lane ends before `finish_pieces` is done, also where that is because nobody listens any more.
begin_pieces() {
	by=shell
	begin
	P=$temp
	trap '[ -z "$P" ] || remove_temp' EXIT
	trap 'exit 1' HUP PIPE TERM
	into=$to
	printf '%s\n' "$$"
}

# join_pieces TEMP PID: prepares another lane for pieces of the file that process PID has open.
join_pieces() {
	temp='' into=$1
	[ -z "$FD" ] || [ ! -e "/proc/$2/fd/9" ] || into=/proc/$2/fd/9
}

# piece OFFSET LENGTH BLOCK: copies so many bytes, not one more, to that place of its output.
piece() { dd bs="$3" seek="$1" count="$2" iflag=fullblock,count_bytes oflag=seek_bytes; }

# take_piece OFFSET LENGTH RECORDS: receives a piece. Answers when it stands ready to read; once it
# has read all, it says nothing more, and the next line of the lane answers for both.
take_piece() {
	# Without this a file that another lane has given up would be made again.
	[ -f "$into" ] || fail "$INCOMPLETE"
	e=
	# Input that ends too early is no failure for dd, but what it counts shows it.
	if { a "$READY"; e=$(piece "$1" "$2" 65536 2>&1 >&4); } 4<>"$into"; then
		case $e in "$3 records in$nl$3 records out"*) return ;; esac
	fi
	# Before it speaks: where nobody listens any more, that ends the shell.
	remove_temp
	printf '%s\n' "${e%%"$nl"*}"
	fail 1
}

# finish_pieces SIZE ATIME: moves a file whose pieces are complete to its place. What no piece was
# sent for is a hole.
finish_pieces() {
	if [ -n "$TR" ] && [ "$(sz "$to")" != "$1" ]; then try truncate -c -s "$1" -- "$to"; fi
	[ "$(sz "$to")" = "$1" ] || fail "$INCOMPLETE"
	try touch -c -a "$2" -- "$to"
	put
}

# flush PATH: writes a file to the disk; only the lack of a program for that is no failure.
flush() {
	e=$(sync -- "$1" 2>&1 </dev/null) && return
	case $?:$e in
	12[67]:* | *sage:* | *' option'* | *'extra operand'*) ;;
	*) printf '%s\n' "$e"; return 1 ;;
	esac
	e=$(fsync "$1" 2>&1 </dev/null) && return
	case $?:$e in 12[67]:*) return 0 ;; esac
	printf '%s\n' "$e"
	return 1
}

# open_target: opens the target as descriptor 7, without changing it.
open_target() {
	{ opened=1; exec 7<&8; } 8<"$path"
	[ -n "$opened" ] || { opened=1; exec 7>&8; } 8>>"$path"
	[ -n "$opened" ]
}

# lock: takes the lock of descriptor 7, where there is a program for it. Another mount that stores the
# file has it for a moment; a program that keeps it for its own reasons keeps nothing from being
# stored.
# shellcheck disable=SC2034
lock() {
	for n_tries in 1 2 3 4 5; do
		flock -n 7 7<&7
		[ $? = 1 ] || return
		sleep 1
	done
}

# see: sets V and A, the version and the attributes of the target, and B, the attributes of the
# temporary file. A target that is open is looked at through its descriptor.
see() {
	c='' B=''
	case $expected in 'c '*) c=c ;; esac
	if [ -z "$opened" ] || [ -z "$FD" ]; then
		l=$(look '' "$c" ${temp:+"$temp"} "$path")
	else
		l=$(look L "$c" ${temp:+"$temp"} "$FD/7")
	fi
	if [ -n "$temp" ]; then
		B=${l%%"$nl"*}
		B=${B##*"|"}
		case $l in *"$nl"*) l=${l#*"$nl"} ;; *) l= ;; esac
	fi
	V=${l%"|"*} A=${l##*"|"}
}

# expected_is_there: whether the target is what is expected. Where a look says nothing of what is
# there, which may be because it was killed, another does; no look is no difference.
expected_is_there() {
	A='' B=''
	if [ "$expected" = 0 ]; then
		! x "$path"
		return
	fi
	see
	case $V in *[0-9]*) ;; *) see ;; esac
	case $V in
	*[0-9]*) ;;
	*)
		[ -z "$temp" ] || is "$temp" 9 || fail "$UNPROVEN"
		if x "$path"; then say 'Input/output error'; fail 1; fi
		;;
	esac
	if [ -n "$opened" ]; then is "$path" 7 || return; fi
	[ "$expected" = - ] || [ "$V" = "${expected#c }" ]
}

# put: moves a complete temporary file to its place. Between the look at the target and its
# replacement no other mount may come: both lock the file that they expect, where the host has a
# program for it.
put() {
	[ -z "$stamp" ] || try touch -c -m "$stamp" -- "$to"
	[ -z "$sync" ] || flush "$to" || fail 1
	if [ "$expected" != 0 ] && plain "$path" && open_target; then lock; fi
	settle
	flush_parent
	report
}

# flush_parent: writes the name of the target to the disk, where that is wanted. The target has the
# content by then.
flush_parent() {
	[ -n "$sync" ] || return 0
	e=$(flush "$parent") && return
	# A directory without read permission cannot be opened, and takes new names all the same.
	case $e in *'ermission denied') return 0 ;; esac
	printf '%s\n' "$e"
	fail "$PARTIAL"
}

# settle: see put.
settle() {
	if ! expected_is_there; then
		conflict
	elif ! x "$path"; then
		grant
		move_new "$path" || conflict
	elif [ -d "$path" ] && ! [ -h "$path" ]; then
		say 'Is a directory'
		fail 1
	elif [ "$how" != replace ]; then
		write_target
	elif [ -h "$path" ] || odd "$path"; then
		grant
		try mv_ "$temp" "$path"
	elif inherit; then
		is "$temp" 9 || fail "$UNPROVEN"
		e=$(mv_ "$temp" "$path" 2>&1 </dev/null) && return
		s=$?
		is "$temp" 9 || fail "$UNPROVEN"
		case $e in
		*'esource busy' | *'not permitted' | *'ermission denied') instead ;;
		*) printf '%s\n' "$e"; fail $s ;;
		esac
	else
		instead
	fi
}

# instead: writes in place what cannot be replaced.
instead() {
	how=inplace
	expected_is_there || fail "$CONFLICT"
	write_target
}

# grant: gives a new file to its owner, then its permissions: before, nobody else may read it.
grant() {
	if [ -n "$owner" ]; then
		if [ -n "$FD" ]; then try chown "$owner" -- "$to"; else try chown -h "$owner" -- "$to"; fi
	elif [ -n "$created" ]; then
		# The ACL that the file was made with has the last word.
		inherited_mode "$created" "$mode"
		try chmod "$m" -- "$to"
		return
	else
		# It was made with this mode, or scp has set it.
		case $expected$by$mode in 0scp0* | 0shell0[26][0246][0246]) return ;; esac
	fi
	try chmod "$mode" -- "$to"
}

# inherited_mode CREATED WANTED: sets m to the mode that a creation with WANTED gives where one
# without execute permissions, as a shell's, gives CREATED.
inherited_mode() {
	c=$1 w=$2 m=${2%???}
	case $c in ????) c=${c#?} ;; esac
	for _ in u g o; do
		w=${w#?}
		d=${w%"${w#?}"}
		case ${c%"${c#?}"}$d in 0[01] | 2[23] | 4[45] | 6[67]) m=$m$d ;; *) m=$m${c%"${c#?}"} ;; esac
		c=${c#?}
	done
}

# inherit: gives the temporary file the attributes of the target; fails where it cannot have all that
# the target has. They are those of the version that was compared, not of what has the name now: that
# could be a link to a setuid file.
inherit() {
	with=
	if [ -n "$XA" ] && [ -n "$FD" ] && [ -n "$opened" ]; then with=xattr; fi
	# Permissions that were taken away here are never given; only with them come ACLs.
	if [ -n "$with" ] && [ -z "$chmod" ]; then with=mode,$with; else ! extended "$path" || return; fi
	# To anybody but root, cp does not tell that it has given nothing away.
	case $with:$B in
	[mx]*' 0:'*) with=ownership,$with ;;
	*)
		if [ "${A#* }" != "${B#* }" ]; then
			if [ -n "$FD" ]; then o=; else o=-h; fi
			# shellcheck disable=SC2086
			chown $o "${A#* }" -- "$to" || return
			B=
		fi
		;;
	esac
	if [ -n "$with" ]; then
		[ "$XA" != c ] || with=$with,context
		cp --attributes-only --preserve="$with" -- "$FD/7" "$to" || return
		case $with in *mode*) return ;; esac
	fi
	m=${A%% *}
	[ -z "$chmod" ] || m=$mode
	[ "$m" = "${B%% *}" ] || try chmod "$m" -- "$to"
}

# write_target: puts the content of the temporary file into the target, instead of what is there or
# behind it. Not in one step.
write_target() {
	if odd "$path"; then say 'Invalid argument'; fail 1; fi
	n=7 w=$path i=
	if [ -n "$FD" ]; then w=$FD/7; fi
	if [ -z "$opened" ] || ! [ -w "$w" ]; then why "$path"; say 'Permission denied'; fail 1; fi
	# It is gone where a retry has removed it, which must not find that this one goes on.
	is "$temp" 9 || fail "$UNPROVEN"
	if [ "$how" = append ]; then
		{ i=1; e=$(cat -- "$to" 2>&1 >&4); } 4>>"$w"
	else
		{ i=1; protect "$w"; e=$(cat -- "$to" 2>&1 >&4); } 4>"$w"
	fi || {
		[ -n "$i" ] || { why "$w"; fail 1; }
		printf '%s\n' "$e"
		v=$V
		see
		[ "$V" != "$v" ] || fail 1
		fail "$PARTIAL"
	}
	# Another user's file may be writable without allowing a change of its mode and times.
	set_mode "$w"
	touch -c -r "$to" -- "$w" || R=$UNTIMED
	[ -z "$sync" ] || flush "$w" || fail "$PARTIAL"
	remove_temp
}

# protect PATH: sets the permissions that were changed here, before content comes, but no special
# bits: until then it may be the content of somebody else.
protect() { [ -z "$chmod" ] || chmod "0${mode#?}" -- "$1"; }

# set_mode PATH: sets them behind content, which takes setuid and setgid away.
set_mode() {
	[ -n "$chmod" ] || return
	case $how$mode in append* | *[!0]???) chmod "$mode" -- "$1" ;; esac
}

# identical: whether the target has the content of the temporary file, and kept it while they were
# compared; no, where nothing can tell.
identical() {
	see
	v=$V
	cmp -s -- "$to" "$path"
	case $? in
	0) ;;
	127) e=$(sha256sum <"$to") && [ "$e" = "$(sha256sum <"$path")" ] || return ;;
	*) return 1 ;;
	esac
	see
	[ "$V" = "$v" ]
}

# conflict: what to do with complete content that must not replace the target. Sets R, the status of
# the upload, and D, what has the content: the target made anew if it is gone, the target as it is if
# it has the same content, or a conflict copy, whose name must be new.
conflict() {
	[ "$how" != append ] || fail "$CONFLICT"
	# From here on what has the name counts.
	opened=
	if ! x "$path"; then
		R=$RECREATED
	elif plain "$path" && identical; then
		[ -z "$sync" ] || flush "$path" || fail 1
		remove_temp
		R=$SAME
		return
	else
		R=$KEPT_BESIDE D=$beside
	fi
	[ -n "$beside" ] || fail "$CONFLICT"
	# Not the attributes of what has the name: somebody else may have put that there to read this.
	grant
	move_new "$D" || fail "$CONFLICT"
}

# move_new NAME: moves the temporary file to a name that must be new, in one step with the look
# whether it is; fails where somebody was faster. GNU's `mv -n` is renameat2(2); elsewhere only a link
# is as good.
move_new() {
	n=9
	if [ "$how" = direct ]; then return; fi
	if [ "$MV" = -fT ]; then
		e=$(mv -nT -- "$temp" "$1" 2>&1)
	elif e=$(ln_ "$temp" "$1" 2>&1 </dev/null); then
		rm -f -- "$temp"
	elif ! x "$1"; then
		# There are no hard links here.
		e=$(mv_ "$temp" "$1" 2>&1 </dev/null)
	fi
	s=$?
	# Some mv say nothing where they move nothing, others fail.
	if is "$1" 9 && { ! x "$temp" || [ "$1" -ef "$temp" ]; }; then
		remove_temp
		return 0
	fi
	! x "$1" || return 1
	is "$temp" 9 || fail "$UNPROVEN"
	[ $s != 0 ] || { s=$UNPROVEN; e=; }
	printf '%s\n' "$e"
	fail "$s"
}

# report: ends an upload that succeeded: the name leads to the file that has the content.
report() {
	st "$D" "$parent"
	[ "$R" = "$SAME" ] || is "$D" "$n" || fail "$UNPROVEN"
	release
	P=
	a "$R"
}
