//! Moves a busy guest with the command as a user types it, and shows what others see of it: `demo QFERRY`, with the
//! path of the command; see `scripts/demo`.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{env, io, thread};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use qferry_bed::{DiskSpec, Error, ImageFacts, Pair, Result, Side, Spec, Workload, image_facts};
use tokio::signal::unix::{SignalKind, signal};

const MIB: u64 = 1 << 20;
const WAIT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let Some(qferry) = env::args_os().nth(1) else {
        eprintln!("usage: demo QFERRY");
        return ExitCode::from(2);
    };
    let demo = match watch_for_signals() {
        Ok(interrupted) => Demo { qferry, interrupted },
        Err(error) => {
            eprintln!("demo: no signals: {error}");
            return ExitCode::FAILURE;
        }
    };
    // The pair is dropped within: both QEMUs and their files are gone when the call returns.
    let done = demo.run();
    match done {
        _ if demo.is_interrupted() => {
            println!("\nInterrupted. Both QEMUs and their files are removed.");
            ExitCode::from(130)
        }
        Ok(()) => {
            println!("\nAll is well. Both QEMUs and their files are removed.");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\ndemo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Takes the signals that would end this process without its clean-up. With handlers, for unlike a handler a blocked
/// signal is inherited by children, and qferry must hear Ctrl-C.
fn watch_for_signals() -> io::Result<Arc<AtomicBool>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let entered = runtime.enter();
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let [interrupt, terminate, hangup] = kinds.map(signal);
    let (mut interrupt, mut terminate, mut hangup) = (interrupt?, terminate?, hangup?);
    drop(entered);
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    let any = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    };
    thread::spawn(move || {
        runtime.block_on(any);
        flag.store(true, Ordering::Release);
    });
    Ok(interrupted)
}

struct Demo {
    qferry: OsString,
    interrupted: Arc<AtomicBool>,
}

impl Demo {
    fn run(&self) -> Result<()> {
        let workload = Workload { ram: 32 * MIB, dirty: 10_000_000, ..Workload::default() };
        let disk = DiskSpec { size: 1024 * MIB, overlay_data: 192 * MIB, ..DiskSpec::default() };
        let spec = Spec { memory: 512, workload, disks: vec![disk], apart: true, ..Spec::default() };

        heading("A busy guest, and a QEMU that waits for it");
        let pair = Pair::start(&spec)?;
        self.go_on()?;
        pair.wait_for_beats(Side::Source, 200, WAIT)?;
        println!("source       QEMU {}, process {}: runs the guest", spec.version, pair.source.pid());
        println!("destination  QEMU {}, process {}: -incoming defer -S", spec.version, pair.destination.pid());
        println!("guest        512 MiB RAM, dirties 10 MB/s, 50 writes/s, a beat every 5 ms");
        let before = image(&pair, Side::Source)?;
        println!("disk         1 GiB, an overlay on a backing file, on each side its own;");
        println!("             {} MiB in the source's overlay, the destination's is empty", before.allocated / MIB);

        heading("Could it move? check looks, proves the backing files to be the same, and changes nothing");
        self.qferry(&pair, "check", &["--verify-backing", "full"])?;

        heading("The migration, its disks slowed down so that there is something to see");
        let since = Instant::now();
        self.qferry(&pair, "migrate", &["--disk-bandwidth", "100MiB/s"])?;
        let moved = pair.verified();

        heading("Seen from outside");
        pair.wait_for_beats(Side::Destination, 100, WAIT)?;
        self.go_on()?;
        let beats = [Side::Source, Side::Destination].map(|side| pair.beats(side).len());
        let gap = pair.longest_gap(since).map(|gap| gap.length).unwrap_or_default();
        println!("guest        beat {} times on the source, then {} times on the destination", beats[0], beats[1]);
        println!("             longest time without a beat: {:.1} ms", gap.as_secs_f64() * 1000.0);
        match pair.runners()?.as_slice() {
            [Side::Destination] => println!("runs on      the destination alone; the source's process has ended"),
            other => return Err(Error::new(format!("the guest is to run on the destination alone, not on {other:?}"))),
        }
        pair.wait_until_verified(WAIT)?;
        self.go_on()?;
        let verified = pair.verified();
        let slots = |of: &qferry_bed::Verified| of.slots.values().sum::<u64>();
        println!(
            "guest found  {} pages of memory and {} blocks of its disk as it left them",
            verified.pages - moved.pages,
            slots(&verified) - slots(&moved)
        );
        if let Some(error) = pair.errors().first() {
            return Err(Error::new(format!("the guest found: {error}")));
        }
        println!("errors       none");

        heading("The destination's image, read offline");
        let written = pair.acknowledged();
        for check in pair.check_disks(Side::Destination)? {
            let (whole, in_flight) = (check.acknowledged, check.in_flight);
            println!("writes       {written} were acknowledged to the guest; the last of each of its");
            println!("             {} blocks is there ({in_flight} newer ones were on their way)", whole + in_flight);
            println!("the rest     {} MiB as they were before the guest wrote", check.background / MIB);
        }
        let (at_source, at_destination) = (image(&pair, Side::Source)?, image(&pair, Side::Destination)?);
        if at_destination.backing.as_ref() != pair.destination.disks()[0].backing() {
            return Err(Error::new(format!("the destination's image stands on {:?}", at_destination.backing)));
        }
        println!("backing file still the destination's own");
        let mib = |bytes: u64| bytes as f64 / MIB as f64;
        println!(
            "disk size    {:.1} MiB on the source, {:.1} MiB on the destination",
            mib(at_source.disk_size),
            mib(at_destination.disk_size)
        );
        Ok(())
    }

    /// Shows a command as a user would type it, and runs it on this terminal.
    fn qferry(&self, pair: &Pair, verb: &str, more: &[&str]) -> Result<()> {
        let sockets = [pair.source.qmp_path(), pair.destination.qmp_path()].map(|path| path.display().to_string());
        let [source, destination] = &sockets;
        println!("$ qferry {verb} --source {source} \\");
        println!("    --destination {destination} {}\n", more.join(" "));
        let mut command = Command::new(Path::new(&self.qferry));
        command.args([verb, "--source", source, "--destination", destination]).args(more);
        command.env("XDG_RUNTIME_DIR", pair.run_dir()).env("XDG_STATE_HOME", pair.run_dir());
        let failed = |error: io::Error| Error::new(format!("running qferry: {error}"));
        let mut child = command.spawn().map_err(failed)?;
        let mut told = false;
        let status = loop {
            if let Some(status) = child.try_wait().map_err(failed)? {
                break status;
            }
            if self.is_interrupted() && !told {
                // A terminal sends the interrupt to qferry, too, which then rolls back.
                told = true;
                let pid = i32::try_from(child.id()).map_err(|error| Error::new(error.to_string()))?;
                kill(Pid::from_raw(pid), Signal::SIGINT).map_err(|error| failed(error.into()))?;
            }
            thread::sleep(Duration::from_millis(20));
        };
        self.go_on()?;
        if status.success() { Ok(()) } else { Err(Error::new(format!("qferry: {status}"))) }
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Acquire)
    }

    fn go_on(&self) -> Result<()> {
        if self.is_interrupted() { Err(Error::new("interrupted")) } else { Ok(()) }
    }
}

fn heading(text: &str) {
    println!("\n== {text}");
}

fn image(pair: &Pair, side: Side) -> Result<ImageFacts> {
    image_facts(pair.build(side), &pair.machine(side).disks()[0].overlay)
}
