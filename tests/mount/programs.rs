//! Ordinary programs on a mount.

use rustix::fs::XattrFlags;
use rustix::fs::getxattr;
use rustix::fs::setxattr;
use rustix::io::Errno;
use scpfs_testing::or_skip;

use crate::Mounted;

macro_rules! mounted {
    ($($arg:expr),*) => {
        or_skip!(Mounted::new(&[$($arg),*]))
    };
}

#[test]
fn a_listing_shows_what_the_host_has() {
    let mounted = mounted!("-o", "idmap=none,cache_timeout=0");
    mounted.sh(r#"
        cd "$THERE"; mkdir -p a/b; echo hello > a/file; ln -s file a/link; mkfifo a/pipe
        chmod 644 a/file; touch -d '2001-02-03 04:05:06.123456789' a/file
        echo x > 'name with space'; echo x > '-rf'; echo x > '$(touch evil)'
        echo x > "$(printf 'new\nline')"; echo x > "$(printf 'bad\377')"; ln a/file a/hard
    "#);
    mounted.sh(r#"
        list() { cd "$1" && find . -printf '%P %y %m %u %g %s %n %i %T@ %l\n' | sort; }
        list "$HERE" > "$ASIDE/here"; list "$THERE" > "$ASIDE/there"
        diff "$ASIDE/here" "$ASIDE/there"
        cmp a/file "$THERE/a/file"; cmp a/link "$THERE/a/link"; test ! -e evil
        ls -la > /dev/null
        "#);
}

#[test]
fn copies_of_two_thousand_files_are_the_same_each_way() {
    let mounted = mounted!();
    mounted.sh(r#"
        mkdir "$ASIDE/src"; cd "$ASIDE/src"
        for d in $(seq 40); do mkdir -p "d$d/sub"; for f in $(seq 50); do
            echo "content $d $f" > "d$d/sub/f$f"; done; done
        chmod 600 d1/sub/f1; ln -s f1 d1/sub/link; touch -d '1999-12-31 23:59:59.5' d2/sub/f2
        "#);
    mounted.sh(r#"
        show() { cd "$1" && find . -printf '%p %y %m %s %T@ %l\n' | sort; }
        cp -a "$ASIDE/src" up
        diff -r "$ASIDE/src" "$THERE/up"
        test "$(show "$ASIDE/src")" = "$(show "$THERE/up")"
        cp -a up "$ASIDE/down"
        diff -r "$ASIDE/src" "$ASIDE/down"
        test "$(show "$ASIDE/src")" = "$(show "$ASIDE/down")"
        rm -r up
        test ! -e "$THERE/up"
        "#);
}

#[test]
fn editors_save_files() {
    let mounted = mounted!();
    mounted.sh(r#"
        printf 'one\ntwo\n' > file; chmod 640 file
        sed -i s/one/ONE/ file
        vim -u NONE -es -c '%s/two/TWO/' -c wq file
        vim -u NONE -es -c 'set backup writebackup backupcopy=yes' -c 'normal Gothree' -c wq file
        test "$(cat "$THERE/file")" = "$(printf 'ONE\nTWO\nthree')"
        test "$(stat -c %a "$THERE/file")" = 640
        "#);
    // nano needs a terminal, and waits for each screen update before it accepts the next key.
    mounted.sh(r#"
        cat > "$ASIDE/keys.py" <<'END'
import os, pty, sys
pid, tty = pty.fork()
if pid == 0:
    os.environ.update(TERM="xterm", LC_ALL="C")
    os.execvp("nano", ["nano", "--ignorercfiles", "file"])
for shown, keys in [(b"ONE", b"x"), (b"Modified", b"\x18"), (b"Save mod", b"y"), (b"to Write", b"\r")]:
    seen = b""
    while shown not in seen:
        seen += os.read(tty, 65536)
    os.write(tty, keys)
while True:
    try:
        if not os.read(tty, 65536):
            break
    except OSError:
        break
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
END
        timeout 300 python3 "$ASIDE/keys.py"
        head -c 4 "$THERE/file" | grep xONE
        "#);
}

#[test]
fn archives_and_mirrors_are_complete() {
    let mounted = mounted!();
    mounted.sh(r#"
        mkdir "$ASIDE/src"; cp -rL /usr/share/zoneinfo/E* /usr/include/netinet "$ASIDE/src/"
        tar cf "$ASIDE/x.tar" -C "$ASIDE/src" .
        mkdir tar; tar xf "$ASIDE/x.tar" -C tar
        diff -r "$ASIDE/src" "$THERE/tar"
        rsync -a "$ASIDE/src/" mirror/
        diff -r "$ASIDE/src" "$THERE/mirror"
        test -z "$(rsync -a --itemize-changes "$ASIDE/src/" mirror/)"
        "#);
}

#[test]
fn git_finds_its_repository_unchanged() {
    let mounted = mounted!();
    mounted.sh(
        r#"
        git() { command git -c user.name=x -c user.email=x@y -c init.defaultBranch=main -c safe.directory='*' "$@"; }
        git init -q "$ASIDE/origin"; cd "$ASIDE/origin"
        for n in $(seq 60); do echo "file $n" > "f$n"; done
        git add .; git commit -qm one
        cd "$HERE"; git clone -q "$ASIDE/origin" clone; cd clone
        test -z "$(git status --porcelain)"
        echo changed >> f1; git commit -qam two
        test -z "$(git status --porcelain)"
        git fsck --strict
        command git -c safe.directory='*' -C "$THERE/clone" fsck --strict
        git log --oneline | wc -l | grep -qx 2
        git gc -q; git fsck
        "#,
    );
    // git does not read a file whose mtime is in an earlier second than its index to find out
    // whether it has changed.
    mounted.sh(r#"
        cd clone; touch -d '-1 minute' f*; git -c safe.directory='*' status --porcelain > /dev/null
        strace -f -e trace=openat -o "$ASIDE/trace" git -c safe.directory='*' status --porcelain
        ! grep '"f[0-9]*"' "$ASIDE/trace"
        "#);
}

#[test]
fn a_program_is_built_on_the_mount() {
    let mounted = mounted!();
    mounted.sh(
        r#"
        for n in $(seq 8); do printf 'int f%d(void){return %d;}\n' $n $n > "f$n.c"; done
        { for n in $(seq 8); do echo "int f$n(void);"; done
          echo 'int main(void){return'; for n in $(seq 8); do echo "f$n()+"; done; echo '-36;}'; } > main.c
        printf 'o := $(patsubst %%.c,%%.o,$(wildcard *.c))\nprog: $o\n\tcc -o $@ $o\n' > Makefile
        make -s -j2; ./prog
        make -q
        touch f3.c; make -s | grep -q . && exit 1; ./prog
        make -q
        "#,
    );
}

#[test]
fn sqlite_keeps_its_guarantees() {
    let mounted = mounted!();
    mounted.sh(r#"
        sqlite3 db 'create table t(a); begin;' > /dev/null
        for n in $(seq 5); do sqlite3 db "insert into t values($n), ($n)"; done
        test "$(sqlite3 db 'select sum(a) from t; pragma integrity_check')" = "$(printf '30\nok')"
        test "$(sqlite3 "$THERE/db" 'select sum(a) from t')" = 30
        "#);
}

#[test]
fn files_of_all_sizes_need_little_memory() {
    let mounted = mounted!();
    mounted.sh(
        r#"
        mkdir "$THERE/unlisted"
        : > empty; head -c 4096 /dev/urandom > "$ASIDE/page"; cp "$ASIDE/page" page
        cmp "$ASIDE/page" "$THERE/page"; test ! -s "$THERE/empty"; test -e "$THERE/empty"
        # Two gigabytes in which no two blocks are equal.
        openssl enc -aes-128-ctr -K 00 -iv 00 -in /dev/zero 2>/dev/null | head -c 2147483648 > "$ASIDE/big" || true
        test "$(stat -c %s "$ASIDE/big")" = 2147483648
        cp "$ASIDE/big" big
        cmp "$ASIDE/big" "$THERE/big"
        rm big; mv "$ASIDE/big" "$THERE/unlisted/other"
        cmp unlisted/other "$THERE/unlisted/other"
        "#,
    );
    let peak = mounted.peak_memory();
    assert!(peak < 64 << 20, "{peak} bytes");
}

#[test]
fn extended_attributes_cannot_be_read_or_set_through_the_mount() {
    let mounted = mounted!();
    mounted.put("file", "content");
    let (file, name) = (mounted.here("file"), "user.comment");
    let set = setxattr(&file, name, b"value", XattrFlags::empty());
    assert_eq!(set, Err(Errno::OPNOTSUPP));
    let got = getxattr(&file, name, &mut [0; 16]);
    assert_eq!(got, Err(Errno::OPNOTSUPP));
}
