//! Files that are open here while the host changes them.

use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use scpfs_testing::or_skip;

use crate::Mounted;

/// Reads an open file while it changes, and fails if the content is no version of the file. Each
/// version repeats one letter, and the letter determines the size.
const LOOK: &str = r#"
import os, time
SIZES = {c: n * SCALE for c, n in zip("abcde", (23, 2, 9000, 4096, 70000))}
fd = os.open("file", os.O_RDONLY)
seen = set()
began = time.monotonic()
def state():
    st = os.fstat(fd)
    return st.st_size, st.st_mtime_ns
while not os.path.exists(os.environ["ASIDE"] + "/done"):
    if time.monotonic() - began > 0.3:
        # Without a pause between its reads, this program would keep its version.
        time.sleep(1.05)
        began = time.monotonic()
    before = state()
    data = os.pread(fd, 100000 * SCALE, 0)
    if state() != before: continue
    size, letters = before[0], {c for c in SIZES if c.encode() in data}
    assert len(data) == size, (size, len(data), letters)
    if size == 0: continue
    # The host writes a large file page by page.
    assert len(letters) == 1, (size, letters)
    whole = SIZES[data[:1].decode()]
    assert size == whole or (size < whole and size % 4096 == 0), (size, letters)
    seen |= letters
print("".join(sorted(seen)))
"#;

const CHANGE: &str = r#"
import os, time
SIZES = {c: n * SCALE for c, n in zip("abcde", (23, 2, 9000, 4096, 70000))}
fd = os.open(os.environ["THERE"] + "/file", os.O_WRONLY)
for n in range(20):
    for letter in "abacadaebecedcd":
        os.ftruncate(fd, 0)
        os.pwrite(fd, (letter * SIZES[letter]).encode(), 0)
        # Longer than the resolution of file times.
        time.sleep(0.01)
        time.sleep(0.002 * (n % 10))
open(os.environ["ASIDE"] + "/done", "w")
"#;

/// Maps an open file that grows, and fails if it reads bytes that were never written.
const MAP: &str = r#"
import mmap, os
fd = os.open("file", os.O_RDONLY)
sizes = set()
while not os.path.exists(os.environ["ASIDE"] + "/done"):
    size = os.fstat(fd).st_size
    with mmap.mmap(fd, size, prot=mmap.PROT_READ) as m:
        data = m[:]
        assert data == b"x" * size, (size, data.count(0), data.find(0))
    sizes.add(size)
print(len(sizes))
"#;

const APPEND: &str = r#"
import os, time
fd = os.open(os.environ["THERE"] + "/file", os.O_WRONLY | os.O_APPEND)
for n in range(400):
    os.write(fd, b"x" * (1 + n * 37 % 5000))
    time.sleep(0.002 * (n % 10))
open(os.environ["ASIDE"] + "/done", "w")
"#;

/// Runs one program on the mount and another one on the host; returns the output of the former.
fn beside(mounted: &Mounted, here: &str, there: &str) -> String {
    std::fs::write(mounted.aside("here.py"), here).unwrap();
    std::fs::write(mounted.aside("there.py"), there).unwrap();
    mounted.sh(r#"
        python3 "$ASIDE/here.py" &
        here=$!
        python3 "$ASIDE/there.py"
        wait $here
        "#)
}

#[test]
fn an_open_file_read_while_the_host_changes_it_is_of_one_version() {
    // Reads wait for the newer version of a small file; that of a large file is fetched in the
    // background.
    for scale in [1, 100] {
        let mounted = or_skip!(Mounted::new(&["-o", "cache_timeout=0"]));
        mounted.put("file", "a".repeat(23 * scale));
        let scaled = |script: &str| format!("SCALE = {scale}\n{script}");
        let seen = beside(&mounted, &scaled(LOOK), &scaled(CHANGE));
        assert!(seen.trim().len() >= 3, "only {seen}");
    }
}

#[test]
fn mapping_of_a_growing_file_shows_only_bytes_that_were_written() {
    let mounted = or_skip!(Mounted::new(&["-o", "cache_timeout=0"]));
    mounted.put("file", "x");
    let n_sizes = beside(&mounted, MAP, APPEND);
    assert!(n_sizes.trim().parse::<u32>().unwrap() > 10, "{n_sizes}");
}

struct Tail(Child);

impl Drop for Tail {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[test]
fn tail_of_an_open_log_shows_each_line_that_the_host_appends() {
    let mut mounted = or_skip!(Mounted::new(&["-o", "cache_timeout=1"]));
    mounted.put("log", "line 0\n");
    let out = mounted.aside("out");
    let tail = Command::new("tail")
        .args(["-n", "+1", "-s", "0.1", "-f"])
        .arg(mounted.here("log"))
        .stdout(std::fs::File::create(&out).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _tail = Tail(tail);
    let mut expected = "line 0\n".to_owned();
    let shown = |expected: &str| std::fs::read_to_string(&out).unwrap() == expected;
    mounted.wait_until("the first line is shown", |_| shown(&expected));
    for n in 1..=3 {
        expected += &format!("line {n}\n");
        mounted.sh(&format!("echo line {n} >>\"$THERE/log\""));
        let since = Instant::now();
        mounted.wait_until("the appended line is shown", |_| shown(&expected));
        let took = since.elapsed();
        assert!(took < Duration::from_millis(2500), "{took:?}");
    }
}

#[test]
fn an_open_database_that_changes_on_the_host_is_never_malformed() {
    let mounted = or_skip!(Mounted::new(&["-o", "cache_timeout=1"]));
    mounted.sh(r#"
        python3 - <<'EOF'
import os, sqlite3, time
there = os.environ["THERE"] + "/db"
host = sqlite3.connect(there, isolation_level=None)
host.execute("create table t(a integer, b text)")
def fill(n): host.executemany("insert into t values(?, ?)", [(i, "x" * 500) for i in range(n)])
fill(100)
os.chmod(there, 0o666)
# Python has listed this directory for modules: wait until that listing is stale.
time.sleep(1.2)
reader = sqlite3.connect("file:db?mode=ro", uri=True)
writer = sqlite3.connect("db")
def look(connection):
    assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    n, s = connection.execute("select count(*), sum(a) from t").fetchone()
    connection.rollback()
    return n
assert look(reader) == look(writer) == 100
for n in (300, 7, 150):
    host.execute("begin"); host.execute("delete from t"); fill(n); host.execute("commit")
    host.execute("vacuum")
    time.sleep(1.2)
    # While a descriptor may write, the mount keeps the version that was opened.
    assert (look(reader), look(writer)) == (100, 100), n
writer.close()
time.sleep(1.2)
assert look(reader) == 150
for n in (300, 7, 150):
    host.execute("begin"); host.execute("delete from t"); fill(n); host.execute("commit")
    host.execute("vacuum")
    time.sleep(1.2)
    assert look(reader) == n, n
EOF
        "#);
}
