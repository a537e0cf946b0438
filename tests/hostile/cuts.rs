//! Connections that end at every byte: a partial answer is never taken for a complete one.

use std::sync::Arc;

use scpfs::clock::ManualClock;
use scpfs::remote::Expect;
use scpfs::remote::Remote;
use scpfs::scp_only;
use scpfs::shell::probe;
use scpfs_testing::content::bytes;
use scpfs_testing::hostile::Ask;
use scpfs_testing::hostile::settings;
use scpfs_testing::hostile::told;
use scpfs_testing::samples::path;
use scpfs_testing::samples::upload_spec;
use scpfs_testing::scripted::Act;
use scpfs_testing::scripted::Scripted;
use scpfs_testing::scripted::Talk;
use scpfs_testing::scripted::Then;

use crate::lane::FILE;
use crate::lane::found;
use crate::scp_only::BANNERS;

fn remote(banner: Option<&'static str>, act: &Act) -> Box<dyn Remote> {
    let (act, clock) = (Arc::clone(act), Arc::new(ManualClock::new()));
    match banner {
        Some(banner) => {
            let host = Arc::new(Scripted::scp(banner, act));
            Box::new(scp_only::probe::probe(host, &settings(), clock).unwrap())
        }
        None => {
            let host = Arc::new(Scripted::lane("gnu", act));
            Box::new(probe::probe(host, &settings(), clock).unwrap())
        }
    }
}

#[test]
fn answer_that_is_cut_at_any_byte_is_an_error_or_complete() {
    let times = "T1 0 1 0\n";
    let listing = format!("{times}D0755 0 srv\n{times}C0644 1 a\n{times}D0755 0 b\nE\n");
    let file = format!("{times}C0644 5 file\nhello\0");
    let look = format!("{times}C0644 5 file\n");
    let scp = [(Ask::Stat, look), (Ask::List, listing), (Ask::Fetch, file)];
    let names = [
        found(0, 'd', "srv", ""),
        found(1, 'f', "a", ""),
        found(1, 'l', "b", "a"),
    ];
    let lane = [
        (Ask::Stat, format!("{FILE}\x1e@T@ 0\n")),
        (Ask::List, format!("{}\x1e@T@ 0\n", names.concat())),
        (
            Ask::Fetch,
            format!("{times}C0644 2 file\nok\0{FILE}\x1e@T@ 0\n"),
        ),
    ];
    let worlds = BANNERS.map(|banner| (Some(banner), &scp)).into_iter();
    for (banner, rows) in worlds.chain([(None, &lane)]) {
        for (ask, words) in rows {
            for then in [Then::Close, Then::Silence] {
                let mut whole = None;
                for n_bytes in (0..=words.len()).rev() {
                    let act = Act::default();
                    let remote = remote(banner, &act);
                    let words = &words.as_bytes()[..n_bytes];
                    act.lock().set(vec![Talk::new(words, then.clone()).into()]);
                    match ask.of(&*remote) {
                        Ok(answer) => {
                            let whole = whole.get_or_insert_with(|| answer.clone());
                            assert_eq!(*whole, answer, "{banner:?} {ask:?} {n_bytes}");
                        }
                        Err(error) => {
                            told(&error);
                        }
                    }
                }
                let is_whole = whole.is_some() || then == Then::Silence;
                assert!(is_whole, "{banner:?} {ask:?}: not even the whole is one");
            }
        }
    }
}

#[test]
fn upload_whose_answer_is_cut_at_any_byte_fails() {
    const SUCCESS: [&[u8]; 2] = [b"\0\0\0\0\0", b"\0\0\0\0"];
    for (banner, acks) in BANNERS.into_iter().zip(SUCCESS) {
        for n_acks in 0..acks.len() {
            for then in [Then::Close, Then::Silence] {
                let act = Act::default();
                let remote = remote(Some(banner), &act);
                let missing = Talk::new(b"\x01scp: file: No such file or directory\n", Then::Close);
                let sink = Talk::new(&acks[..n_acks], then);
                act.lock().set(vec![missing.into(), sink.into()]);
                let mut plan = upload_spec(b"hello");
                plan.expect = Expect::Absent;
                let result = remote.upload(&path("file"), &bytes(b"hello"), &plan);
                told(&result.unwrap_err());
            }
        }
    }
    let done = format!("\0\0\0\0\0{FILE}{FILE}\x1e@T@ 0\n");
    for n_bytes in 0..done.len() {
        for then in [Then::Close, Then::Silence] {
            let act = Act::default();
            let remote = remote(None, &act);
            let words = &done.as_bytes()[..n_bytes];
            act.lock().set(vec![Talk::new(words, then).into()]);
            let plan = upload_spec(b"hello");
            let result = remote.upload(&path("file"), &bytes(b"hello"), &plan);
            told(&result.unwrap_err());
        }
    }
}
