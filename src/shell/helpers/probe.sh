# The probe: finds out what a host is and has. Sent to the first resident shell only.
# shellcheck disable=SC2034,SC2154

missing_path=/nonexistent/scpfs

# The userland is recognized by the output of its programs, not by their names or versions.
if [ "$(find / -prune -printf p)" = p ]; then
	case $(stat -c %.9Y /) in
	[0-9]*.?????????) userland=gnu ;;
	esac
fi
if [ -z "$userland" ]; then
	case $(stat -c '%i %y' /) in
	[0-9]*' '????-??-??' '??:??:??*) userland=busybox ;;
	esac
fi
if [ -z "$userland" ]; then
	case $(stat -f '%i %Fm' /) in
	[0-9]*' '[0-9]*.[0-9]*) userland=bsd ;;
	esac
fi
if [ -z "$userland" ]; then
	case $(ls -lnids --full-time /) in
	*[0-9]' d'?????????*' '????-??-??' '??:??:??*' /') userland='ls' ;;
	esac
fi

# accepts COMMAND...: succeeds if a program accepts its options: its error message is that the file
# `missing_path` does not exist. A program that does not know an option reports that instead.
accepts() { case $("$@" 2>&1) in *"$missing_path"*'No such file'*) return 0 ;; esac; return 1; }

mv_option=-f ln_option='' touch_option='' has_truncate='' has_scp='' byte_counter=slow
fd_dir='' has_fd_dir='' cp_attributes='' ls_shows_acl=''
if accepts mv -fT -- $missing_path $missing_path.2; then
	mv_option=-fT
	case $(mv --help 2>&1) in *[Tt]oybox* | *BusyBox*) mv_option=-Tf ;; esac
elif accepts mv -fh -- $missing_path $missing_path.2; then
	mv_option=-fh
fi
if accepts ln -T -- $missing_path $missing_path.2; then
	ln_option=-T
elif accepts ln -h -- $missing_path $missing_path.2; then
	ln_option=-h
fi
if touch -c -h -- $missing_path; then touch_option=-h; fi
if truncate -c -s 1 -- $missing_path; then has_truncate=y; fi
case $(printf '\0' | scp -f $missing_path 2>&1) in *"$missing_path"*) has_scp=y ;; esac
case $(printf 12345 | dd bs=2 count=3 iflag=fullblock,count_bytes) in
123) byte_counter='dd' ;;
*) case $(printf 12345 | head -c 3) in 123) byte_counter='head' ;; esac ;;
esac
# shellcheck disable=SC2094,SC3013
{ [ / -ef /proc/$$/fd/8 ] && ls -dL /proc/$$/fd/8 >&2 && fd_dir=/proc/$$/fd has_fd_dir=y; } 8</
if accepts cp --attributes-only --preserve=mode,ownership,xattr -- $missing_path $missing_path.2; then
	cp_attributes=y
	[ ! -e /sys/fs/selinux/enforce ] || cp_attributes=c
fi
case $userland in gnu | bsd) ls_shows_acl=y ;; esac

# probe DIR: answers with the results. `root` is the last one, because it may contain newlines.
probe() {
	printf 'preset userland=%s mv_option=%s ln_option=%s touch_option=%s' \
		"$userland" "$mv_option" "$ln_option" "$touch_option"
	printf ' has_truncate=%s has_scp=%s byte_counter=%s' "$has_truncate" "$has_scp" "$byte_counter"
	printf ' has_fd_dir=%s cp_attributes=%s ls_shows_acl=%s\n' \
		"$has_fd_dir" "$cp_attributes" "$ls_shows_acl"
	printf 'uid %s\ngid %s\ngroups %s\n' "$(id -u)" "$(id -g)" "$(id -G)"
	printf 'system %s\n' "$(uname -s -m)"
	# The names of the shell and of the userland, for messages.
	printf 'shell %s\n' "$(readlink /proc/$$/exe)"
	case $(ls --help 2>&1) in
	*BusyBox*) printf 'tools BusyBox\n' ;;
	*[Tt]oybox*) printf 'tools toybox\n' ;;
	esac
	if touch -c -d @0.25 -- $missing_path; then
		printf 'times epoch nanos\n'
	elif touch -c -d @1 -- $missing_path; then
		printf 'times epoch\n'
	elif touch -c -d 1970-01-01T00:00:00.25Z -- $missing_path; then
		printf 'times iso nanos\n'
	fi
	case $(mv --help 2>&1) in *--exchange*) printf 'exchange yes\n' ;; esac
	case $(printf 12345 | { copy_piece 1 3 2 2>&1 >/dev/null; cat; }) in
	"1+1 records in${newline}1+1 records out$newline"*45) printf 'pieces yes\n' ;;
	esac
	# A start-up file of the login may have changed the working directory.
	case $1 in /*) ;; *) cd -- "$HOME" || : ;; esac
	if ! exists "$1"; then answer "$ROOT_MISSING"; return; fi
	if ! [ -d "$1" ]; then answer "$ROOT_NOT_A_DIRECTORY"; return; fi
	if ! cd -P -- "$1" || ! [ -r . ]; then answer "$ROOT_DENIED"; return; fi
	printf 'root %s\n' "$(pwd -P)"
	cd / || :
	answer 0
}
