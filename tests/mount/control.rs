//! `scpfs status` and `scpfs umount`.

use std::fs;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::thread;

use scpfs_testing::or_skip;
use scpfs_testing::wait::wait_until;
use serde_json::Value;

use crate::Mounted;
use crate::writer::Writer;

fn point(mounted: &Mounted) -> String {
    mounted.aside("mnt").display().to_string()
}

fn umount(mounted: &Mounted, options: &[&str]) -> (Option<i32>, String) {
    let point = point(mounted);
    let words = [&["umount", &point], options].concat();
    said(&mounted.control(&words).output().unwrap())
}

fn said(output: &Output) -> (Option<i32>, String) {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

fn status(mounted: &Mounted) -> Value {
    let output = mounted
        .control(&["status", "--json", &point(mounted)])
        .output()
        .unwrap();
    assert!(output.status.success(), "{:?}", said(&output));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    document["mounts"][0].clone()
}

/// Makes the root on the host read-only or writable, so that uploads fail or succeed.
fn refuse_uploads(mounted: &Mounted, refuses: bool) {
    let mode = if refuses { 0o555 } else { 0o755 };
    fs::set_permissions(mounted.there(""), fs::Permissions::from_mode(mode)).unwrap();
}

/// Writes 7 bytes to a file whose upload the host then refuses.
fn fail_to_upload(mounted: &Mounted) {
    let mut file = File::create(mounted.here("file")).unwrap();
    file.write_all(b"content").unwrap();
    // Neither creating the file nor uploading it is permitted, whichever of the two is still to be
    // done.
    refuse_uploads(mounted, true);
    let errno = rustix::io::Errno::from_io_error(&file.sync_all().unwrap_err());
    assert_eq!(errno, Some(rustix::io::Errno::ACCESS), "{}", mounted.log());
}

#[test]
fn status_reports_the_state_of_a_mount() {
    let mut mounted = or_skip!(Mounted::new(&["-o", "cache_size=100M"]));
    mounted.put("file", vec![b'x'; 5000]);
    mounted.sh("cat file; cat file; cat file");
    // The kernel sends RELEASE after close() has returned.
    mounted.wait_until("the file is closed", |mounted| {
        status(mounted)["cache"]["bytes"] == 5000
    });
    let status = status(&mounted);
    assert_eq!(status["mountpoint"], point(&mounted));
    assert!(status["source"].as_str().unwrap().starts_with("host:/"));
    assert_eq!(status["pid"], mounted.pid());
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert!(status["host"].as_str().unwrap().contains("GNU tools"));
    assert_eq!(status["connection"]["state"], "connected");
    assert!(status["connection"]["lanes_open"].as_u64().unwrap() >= 1);
    assert_eq!(status["connection"]["lanes_max"], 4);
    let round_trip = status["connection"]["round_trip_ms"].as_f64().unwrap();
    assert!(round_trip > 0.0 && round_trip < 5000.0, "{round_trip}");
    assert_eq!(status["cache"]["limit"], 100 << 20);
    assert_eq!(status["cache"]["misses"], 1);
    assert_eq!(status["cache"]["hits"], 2);
    assert_eq!(status["files"], Value::Array(Vec::new()));
    let (_, text) = said(&mounted.control(&["status"]).output().unwrap());
    for word in [&point(&mounted), "connected", "GNU tools", "not uploaded"] {
        assert!(text.contains(word), "no `{word}` in: {text}");
    }
}

#[test]
fn status_lists_waiting_uploads_with_reasons() {
    let mut mounted = or_skip!(Mounted::new(&["-o", "cache_timeout=0"]));
    let writer = Writer::start(&mounted.here("b\ny"), b"12345");
    let files = status(&mounted)["files"].clone();
    assert_eq!(files[0]["path"], "b\\ny");
    assert_eq!(
        (&files[0]["state"], &files[0]["size"]),
        (&"writing".into(), &5.into())
    );
    fail_to_upload(&mounted);
    // The release of the last handle retries the upload after close() has returned; later retries
    // run in the background.
    let mut files = Value::Null;
    mounted.wait_until("no upload is in flight", |mounted| {
        files = status(mounted)["files"].clone();
        files[1]["state"] == "failed"
    });
    assert_eq!(files[1]["path"], "file");
    assert_eq!(files[1]["errno"], "EACCES");
    assert!(
        files[1]["message"].as_str().unwrap().contains("file"),
        "{files}"
    );
    mounted.wait_until("the text status shows it as well", |mounted| {
        let words = ["status", &point(mounted)];
        let (_, text) = said(&mounted.control(&words).output().unwrap());
        text.contains("failed     file  7 B: EACCES: ")
    });
    refuse_uploads(&mounted, false);
    assert!(writer.close().success());
}

#[test]
fn status_answers_while_the_host_is_unreachable() {
    let mut mounted = or_skip!(Mounted::new(&[
        "-o",
        "timeout=10,cache_timeout=0,drain_timeout=1"
    ]));
    fs::read_dir(mounted.here("")).unwrap();
    mounted.sshd.kill();
    // Each failed listing detects at least one broken connection.
    let mut connection = Value::Null;
    mounted.wait_until("no connection is open", |mounted| {
        fs::read_dir(mounted.here("")).unwrap_err();
        connection = status(mounted)["connection"].clone();
        connection["state"] != "connected"
    });
    assert!(connection["away_seconds"].is_u64(), "{connection}");
    assert_eq!(connection["lanes_open"], 0);
    assert_eq!(umount(&mounted, &[]), (Some(0), String::new()));
    assert_eq!(mounted.wait().code(), Some(0));
}

#[test]
fn status_shows_the_progress_of_an_upload() {
    let mut mounted = or_skip!(Mounted::new(&["-o", "timeout=60"]));
    let mut writer = Command::new("dd")
        .args(["if=/dev/zero", "bs=1M", "count=100"])
        .arg(format!("of={}", mounted.here("big").display()))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The sessions are stopped after a part of the content has arrived, so that the progress can be
    // read.
    let has_begun = || {
        let mut files = fs::read_dir(mounted.there("")).unwrap().flatten();
        files.any(|file| file.metadata().is_ok_and(|meta| meta.len() > 0))
    };
    wait_until("the upload has begun", has_begun);
    mounted.sshd.freeze_sessions();
    let mut seen = Value::Null;
    mounted.wait_until("the status shows how much was sent", |mounted| {
        seen = status(mounted)["files"][0].clone();
        seen["sent"].as_u64().is_some_and(|sent| sent > 0)
    });
    mounted.sshd.thaw_sessions();
    assert!(writer.wait().unwrap().success());
    assert_eq!(seen["state"], "uploading", "{seen}");
    assert_eq!(seen["size"], 100 << 20, "{seen}");
    assert!(seen["sent"].as_u64().unwrap() <= 100 << 20, "{seen}");
}

#[test]
fn umount_uploads_dirty_files_and_ends_the_mount() {
    let mut mounted = or_skip!(Mounted::new(&[]));
    refuse_uploads(&mounted, false);
    fail_to_upload(&mounted);
    refuse_uploads(&mounted, false);
    let (code, said) = umount(&mounted, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("not uploaded"), "{said}");
    assert!(!mounted.is_mounted());
    assert_eq!(mounted.wait().code(), Some(0), "{}", mounted.log());
    assert_eq!(fs::read(mounted.there("file")).unwrap(), b"content");
    let (code, said) = umount(&mounted, &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("nothing is mounted"), "{said}");
}

#[test]
fn umount_lists_failed_uploads_and_unmounts_only_by_force() {
    let mut mounted = or_skip!(Mounted::new(&["-o", "drain_timeout=5"]));
    fail_to_upload(&mounted);
    let (code, said) = umount(&mounted, &[]);
    assert_eq!(code, Some(6), "{said}");
    assert!(
        said.contains("not uploaded: file: ") && said.contains("still mounted"),
        "{said}"
    );
    assert!(mounted.is_mounted());
    assert_eq!(fs::read(mounted.here("file")).unwrap(), b"content");
    let (code, said) = umount(&mounted, &["--force"]);
    assert_eq!(code, Some(6), "{said}");
    assert!(
        said.contains("not uploaded: file: ") && said.contains("cache"),
        "{said}"
    );
    assert_eq!(mounted.wait().code(), Some(6));
    assert!(!mounted.is_mounted());
    assert!(mounted.log().contains("not uploaded: file: "));
    refuse_uploads(&mounted, false);
}

#[test]
fn umount_gives_up_after_its_timeout() {
    let mut mounted = or_skip!(Mounted::new(&[
        "-o",
        "timeout=30,drain_timeout=1,cache_timeout=0"
    ]));
    fail_to_upload(&mounted);
    // Frozen first: otherwise the upload would be retried and would succeed.
    mounted.sshd.freeze();
    refuse_uploads(&mounted, false);
    let (code, said) = umount(&mounted, &["--timeout", "0.5"]);
    assert_eq!(code, Some(6), "{said}");
    assert!(
        said.contains("not uploaded: file: ") && said.contains("still mounted"),
        "{said}"
    );
    assert!(mounted.is_mounted());
    // After SIGTERM, the drain ends at its deadline as well.
    mounted.signal(rustix::process::Signal::TERM);
    assert_eq!(mounted.wait().code(), Some(6), "{}", mounted.log());
    assert!(
        mounted.log().contains("not uploaded: file: "),
        "{}",
        mounted.log()
    );
    mounted.sshd.thaw();
}

#[test]
fn umount_leaves_a_mount_that_is_in_use() {
    let mut mounted = or_skip!(Mounted::new(&[]));
    fs::write(mounted.here("file"), "content").unwrap();
    let open = File::open(mounted.here("file")).unwrap();
    let (code, said) = umount(&mounted, &[]);
    assert_eq!(code, Some(5), "{said}");
    assert!(
        said.contains("in use") && said.contains("--force"),
        "{said}"
    );
    assert!(mounted.is_mounted());
    let (code, said) = umount(&mounted, &["--force"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(!mounted.is_mounted());
    drop(open);
    assert_eq!(mounted.wait().code(), Some(0));
}

#[test]
fn status_and_umount_refuse_other_filesystems() {
    let mounted = or_skip!(Mounted::new(&[]));
    for command in ["status", "umount"] {
        let (code, text) = said(&mounted.control(&[command, "/proc"]).output().unwrap());
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains("/proc is not an scpfs mount"), "{text}");
    }
}

#[test]
fn control_socket_survives_nonsense_and_long_lines() {
    let mounted = or_skip!(Mounted::new(&[]));
    let path = format!("/run/scpfs/{}.sock", mounted.pid());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(Path::new(&path)), 0o600);
    assert_eq!(mode(Path::new("/run/scpfs")), 0o700);
    let mut idle: Vec<UnixStream> = Vec::new();
    for words in [
        &b"nonsense\n"[..],
        b"{\"ask\":\"format\"}\n",
        &[b'x'; 100_000],
    ] {
        let mut stream = UnixStream::connect(&path).unwrap();
        // The daemon may close the connection before all of it is sent.
        let _sent = stream.write_all(words);
        idle.push(stream);
    }
    assert_eq!(status(&mounted)["pid"], mounted.pid());
    // The daemon refuses idle clients above a limit, and the mount is not affected.
    idle.extend((0..40).map(|_| UnixStream::connect(&path).unwrap()));
    fs::write(mounted.here("file"), "content").unwrap();
    drop(idle);
    wait_until("the control socket answers again", || {
        let mut status = mounted.control(&["status", &point(&mounted)]);
        status.output().unwrap().status.success()
    });
}

#[test]
fn status_shows_conflicts_and_content_of_earlier_mounts() {
    let mut mounted = or_skip!(Mounted::new(&[]));
    mounted.put("file", "base");
    mounted.put("half", "base");
    let writer = Writer::start(&mounted.here("file"), b"ours");
    mounted.put("file", "theirs");
    assert!(!writer.close().success(), "it hears of it");
    let shown = status(&mounted);
    let conflict = &shown["conflicts"][0];
    assert_eq!(conflict["path"], "file");
    let kept_as = conflict["kept_as"].as_str().unwrap();
    assert_eq!(fs::read(mounted.there(kept_as)).unwrap(), b"ours");
    let (_, text) = said(&mounted.control(&["status"]).output().unwrap());
    assert!(
        text.contains(&format!("file: yours is {kept_as}")),
        "{text}"
    );

    let writer = Writer::start(&mounted.here("half"), b"HALF");
    mounted.kill();
    mounted.wait_until("nothing is mounted", |mounted| !mounted.is_mounted());
    assert!(!writer.close().success(), "it hears of it");
    mounted.start(&[]);
    let shown = status(&mounted);
    assert_eq!(shown["left"][0]["path"], "half");
    let (_, text) = said(&mounted.control(&["status"]).output().unwrap());
    assert!(
        text.contains("left        1 file of earlier mounts"),
        "{text}"
    );
}

/// A false daemon on the control socket, which claims that everything is uploaded and unmounted.
struct Liar {
    dir: std::path::PathBuf,
    path: std::path::PathBuf,
}

impl Liar {
    /// Listens in `dir` as `uid`.
    fn start(dir: &Path, uid: u32, mount_id: &str) -> Self {
        fs::create_dir_all(dir).unwrap();
        for dir in [dir, dir.parent().unwrap()] {
            if uid != 0 {
                std::os::unix::fs::chown(dir, Some(uid), Some(uid)).unwrap();
                fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
            }
        }
        let path = dir.join("1.sock");
        let status = format!(
            r#"{{"answer":"status","source":"\u001b]0;pwned\u0007\u009b2J","mountpoint":"x\ny","pid":1,
            "since":0,"uptime_seconds":0,"version":"1","mount_id":"{mount_id}","host":"h",
            "connection":{{"state":"connected","away_seconds":null,"lanes_open":1,"lanes_max":1,
            "round_trip_ms":null}},"cache":{{"directory":"d","bytes":0,"limit":1,"hits":0,"misses":0}},
            "files":[],"conflicts":[],"left":[]}}"#
        )
        .replace('\n', " ")
            + "\n";
        let bound = path.clone();
        let (listening, listens) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let uid = rustix::process::Uid::from_raw(uid);
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            let listener = std::os::unix::net::UnixListener::bind(&bound).unwrap();
            listening.send(()).unwrap();
            for stream in listener.incoming() {
                let mut stream = std::io::BufReader::new(stream.unwrap());
                let mut line = String::new();
                while matches!(std::io::BufRead::read_line(&mut stream, &mut line), Ok(1..)) {
                    let answer = if line.contains("status") {
                        &status
                    } else if line.contains("unmount") {
                        "{\"answer\":\"unmounted\",\"left\":[]}\n"
                    } else {
                        "{\"answer\":\"progress\",\"is_draining\":false,\"left\":[],\"files\":[]}\n"
                    };
                    let _sent = stream.get_mut().write_all(answer.as_bytes());
                    line.clear();
                }
            }
        });
        listens.recv().unwrap();
        Self {
            dir: dir.to_owned(),
            path,
        }
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        fs::remove_file(&self.path).unwrap();
        if self.dir.starts_with("/run/user") {
            fs::remove_dir_all(self.dir.parent().unwrap()).unwrap();
        }
    }
}

/// Regression: `status` of root printed the escape sequences of a false daemon, and `umount`
/// believed its claim that the mount had ended.
#[test]
fn status_and_umount_do_not_believe_a_false_daemon() {
    let mounted = or_skip!(Mounted::new(&[]));
    let mount_id = status(&mounted)["mount_id"].as_str().unwrap().to_owned();
    let socket = format!("/run/scpfs/{}.sock", mounted.pid());
    let aside = mounted.aside("sock");
    fs::rename(&socket, &aside).unwrap();
    let asks = |words: &[&str]| {
        let point = point(&mounted);
        let words = [words, &[&point]].concat();
        said(&mounted.control(&words).output().unwrap())
    };
    let liar = Liar::start(Path::new("/run/user/4242/scpfs"), 4242, &mount_id);
    for words in [&["status"][..], &["status", "--json"], &["umount"]] {
        let (code, text) = asks(words);
        assert_eq!(code, Some(5), "{text}");
        assert!(text.contains("does not answer"), "{text:?}");
    }
    drop(liar);
    // Output of a daemon of the owner is shown, without its escape sequences.
    let liar = Liar::start(Path::new("/run/scpfs"), 0, &mount_id);
    for words in [&["status"][..], &["status", "--json"]] {
        let (code, text) = asks(words);
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("pwned"), "{text:?}");
        let is_safe = |c: char| c == '\n' || !c.is_control();
        assert!(text.chars().all(is_safe), "{text:?}");
    }
    let (code, text) = asks(&["umount"]);
    assert_eq!(code, Some(5), "{text}");
    assert!(text.contains("still mounted"), "{text}");
    drop(liar);
    assert!(mounted.is_mounted());
    fs::rename(&aside, &socket).unwrap();
}
