//! Requests that arrive when nobody listens to the answer any more.

use std::io::Write as _;
use std::process::Command;
use std::process::Stdio;

const HELPERS: &str = include_str!("../../src/remote/shell/helpers.sh");

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "tests start the programs they test against"
)]
fn pieces_that_arrive_when_nobody_listens_leave_nothing() {
    for shell in [&["dash"][..], &["bash"], &["busybox", "sh"]] {
        let dir = tempfile::tempdir().unwrap();
        let temp = dir.path().join("temp");
        let script = format!(
            "T=token; K=word; F=gnu; nl=$(printf '\\n.'); nl=${{nl%.}}\n{HELPERS}\n\
             while IFS= read -r l; do eval \"$l\"; done"
        );
        let Ok(mut child) = Command::new(shell[0])
            .args(&shell[1..])
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
        else {
            eprintln!("SKIPPED: missing {} for a test with shells", shell[0]);
            continue;
        };
        drop(child.stdout.take());
        let mut input = child.stdin.take().unwrap();
        let name = temp.display();
        // It may end before it has read all.
        drop(writeln!(input, "wb '{name}';wp '{name}' 0 10 0+1"));
        drop(input.write_all(b"0123456789a 0\n"));
        drop(input);
        child.wait().unwrap();
        assert!(!temp.exists(), "{shell:?}");
    }
}
