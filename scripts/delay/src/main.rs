//! A network path of a chosen round trip time: `delay INTERFACE RTT_MS`.
//!
//! Makes the TUN interface INTERFACE and sends each IPv4 packet that the kernel gives to it back
//! after half the round trip time, with source and destination exchanged. With the address
//! 10.77.0.1/24 on INTERFACE, a connection to 10.77.0.2 thus reaches 10.77.0.1 itself, over real
//! TCP with that delay in each direction. Rate and queue are not limited and nothing is lost.
//!
//! It exists because not each kernel has netem. It gives the interface no address and does not
//! set it up; `scripts/bench` does, in a network namespace. Runs until it is killed.

use std::collections::VecDeque;
use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::ErrorKind;
use std::io::Read as _;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::ExitCode;
use std::ptr;
use std::time::Duration;
use std::time::Instant;

const USAGE: &str = "usage: delay INTERFACE RTT_MS";

/// The size of `struct virtio_net_hdr`, which precedes each packet: it describes the work that the
/// kernel left to the "hardware", segmentation and checksum. It is sent back unchanged.
const HEADER_LEN: usize = 10;

/// `TUN_F_CSUM | TUN_F_TSO4` of linux/if_tun.h: hand over whole segments of up to 64 KiB, so that
/// the path takes little CPU time from the programs under test.
const OFFLOADS: libc::c_ulong = 0x01 | 0x02;

/// The largest IPv4 packet with its header.
const BUF_LEN: usize = HEADER_LEN + 65535;

/// The number of packets that are read before those that are due are sent.
const BATCH: usize = 64;

fn main() -> ExitCode {
    let (interface, one_way) = match parse(env::args_os().skip(1).collect()) {
        Ok(args) => args,
        Err(problem) => {
            eprintln!("delay: {problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let result = open(&interface).and_then(|tun| reflect(&tun, one_way));
    if let Err(error) = result {
        eprintln!("delay: {interface}: {error}");
    }
    ExitCode::FAILURE
}

/// Returns the name of the interface and the delay of one direction.
fn parse(args: Vec<OsString>) -> Result<(String, Duration), String> {
    let [interface, rtt] = <[OsString; 2]>::try_from(args)
        .map_err(|args| format!("two arguments are needed, not {}", args.len()))?;
    let interface = interface
        .into_string()
        .ok()
        .filter(|it| !it.is_empty() && it.len() < libc::IFNAMSIZ && it.is_ascii())
        .ok_or("not a name for an interface")?;
    let rtt_ms: u32 = rtt
        .to_str()
        .and_then(|it| it.parse().ok())
        .filter(|ms| *ms <= 60_000)
        .ok_or_else(|| format!("not a round trip time in milliseconds: {rtt:?}"))?;
    Ok((interface, Duration::from_micros(u64::from(rtt_ms) * 500)))
}

/// Creates the interface, which exists until the returned file is closed.
fn open(interface: &str) -> io::Result<File> {
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    // SAFETY: all zeros is a valid value of `ifreq`, which is plain data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        // `parse` accepts only ASCII, so the signedness of `c_char` does not matter.
        *to = from as libc::c_char;
    }
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF takes a pointer to an `ifreq`, which lives until the call returns.
    checked(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    // SAFETY: TUNSETOFFLOAD takes its flags as the argument itself.
    checked(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, OFFLOADS) })?;
    Ok(tun)
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sends all packets back, each `one_way` after its arrival. Returns only with an error.
fn reflect(mut tun: &File, one_way: Duration) -> io::Result<()> {
    // The delay is the same for all packets, so they are due in the order of their arrival.
    let mut waiting: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut buf = vec![0; BUF_LEN];
    loop {
        let sending = now();
        while waiting.front().is_some_and(|(due, _)| *due <= sending) {
            let Some((_, packet)) = waiting.pop_front() else {
                break;
            };
            match tun.write(&packet) {
                // EIO: the interface is not up. The packet is lost, as it would be on a wire.
                Err(error) if error.raw_os_error() != Some(libc::EIO) => return Err(error),
                _ => {}
            }
        }
        let wait = waiting
            .front()
            .map(|(due, _)| due.saturating_duration_since(now()));
        wait_readable(tun, wait)?;
        let came = now();
        for _ in 0..BATCH {
            match tun.read(&mut buf) {
                Ok(len) => {
                    if let Some(packet) = turned_round(&buf[..len]) {
                        waiting.push_back((came + one_way, packet));
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
    }
}

/// Returns the packet with source and destination exchanged; `None` if it is not IPv4.
///
/// The checksums of IP and TCP are sums that include both addresses, so they stay valid.
fn turned_round(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut packet = bytes.to_vec();
    let ip = packet.get_mut(HEADER_LEN..).filter(|ip| ip.len() >= 20)?;
    if ip[0] >> 4 != 4 {
        return None;
    }
    let (before, destination) = ip.split_at_mut(16);
    before[12..].swap_with_slice(&mut destination[..4]);
    Some(packet)
}

/// Waits until a packet can be read or `timeout` has passed; `None` waits for ever.
fn wait_readable(tun: &File, timeout: Option<Duration>) -> io::Result<()> {
    let mut poll = libc::pollfd {
        fd: tun.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let timeout = timeout.map(|it| libc::timespec {
        // At most half a minute: see `parse`.
        tv_sec: it.as_secs() as libc::time_t,
        tv_nsec: it.subsec_nanos() as libc::c_long,
    });
    let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: both pointers are to values that live until the call returns, or null where that is
    // permitted; the count is 1, for one `pollfd`.
    let result = unsafe { libc::ppoll(&raw mut poll, 1, timeout, ptr::null()) };
    match checked(result) {
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
        result => result,
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "delaying by the machine's clock is what this program is for"
)]
fn now() -> Instant {
    Instant::now()
}
