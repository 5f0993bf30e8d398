//! A migration whose commands and channels pass through the bed's proxies, so that a test acts at exactly one command.

use super::support::{migrate_when, settings};
use qferry::internals::{
    endpoint::{Address, Endpoint, ProcessHandle},
    migration::{Builder, Migration, Settings},
    progress::{Event, Outcome},
};
use qferry_bed::{ChannelProxy, Command, MonitorProxy, Pair, Side, Tape, nth};
use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

/// The pause between two looks at a command that is waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A pair behind proxies.
pub(crate) struct Proxied<'p> {
    pair: &'p Pair,
    monitors: [MonitorProxy; 2],
    /// The channel of RAM.
    pub(crate) ram: ChannelProxy,
}

/// The folder of the proxies' sockets.
fn folder(pair: &Pair) -> PathBuf {
    pair.run_dir().with_file_name("proxies")
}

/// Proxies before both monitors, with their sockets in a folder.
pub(crate) fn before_monitors(pair: &Pair, folder: &Path) -> [MonitorProxy; 2] {
    let tape = Tape::default();
    [&pair.source, &pair.destination].map(|machine| {
        let path = folder.join(machine.side().to_string());
        MonitorProxy::start(machine.side(), path, machine.qmp_path(), &tape).unwrap()
    })
}

impl<'p> Proxied<'p> {
    pub(crate) fn new(pair: &'p Pair) -> Self {
        let folder = folder(pair);
        std::fs::create_dir_all(&folder).unwrap();
        let monitors = before_monitors(pair, &folder);
        let ram = ChannelProxy::start(folder.join("ram"), folder.join("ram-behind")).unwrap();
        // The engine tells both sides the address of the relay, so the destination's is replaced.
        let [front, behind] = [ram.front(), ram.behind()].map(|path| path.display().to_string());
        monitors[1].replace("migrate-incoming", &front, &behind);
        Self { pair, monitors, ram }
    }

    /// A migration of the pair.
    pub(crate) fn builder(&self) -> Builder {
        self.builder_with(self.settings())
    }

    pub(crate) fn settings(&self) -> Settings {
        let folder = folder(self.pair);
        let address = |path| Some(Address::unix(path).unwrap());
        let mut settings = settings(self.pair);
        settings.nbd_address = address(folder.join("nbd"));
        settings.migrate_address = address(self.ram.front().to_owned());
        settings.source_nbd_address = address(folder.join("source-nbd"));
        settings
    }

    /// A migration of the pair with these settings. The engine follows both processes, as it does where it dials them
    /// itself.
    pub(crate) fn builder_with(&self, settings: Settings) -> Builder {
        let endpoint = |side: Side| {
            let path = self.monitor(side).path().to_owned();
            let process = ProcessHandle::from_pid(self.pair.machine(side).pid()).unwrap();
            Endpoint::connector(side.to_string(), move || tokio::net::UnixStream::connect(path.clone()))
                .with_process(process)
        };
        Migration::builder(endpoint(Side::Source), endpoint(Side::Destination)).settings(settings)
    }

    /// A relay for the channel of the disks. The engine would remove the relay's socket with an export for reading, so
    /// nothing may be read there.
    pub(crate) fn relay_disks(&self) -> ChannelProxy {
        let folder = folder(self.pair);
        let relay = ChannelProxy::start(folder.join("disks"), folder.join("disks-behind")).unwrap();
        let [front, behind] = [relay.front(), relay.behind()].map(|path| path.display().to_string());
        self.monitor(Side::Destination).replace("nbd-server-start", &front, &behind);
        relay
    }

    pub(crate) fn monitor(&self, side: Side) -> &MonitorProxy {
        &self.monitors[usize::from(side == Side::Destination)]
    }

    /// Migrates, and acts when the first command of that name is on its way to a side. The command is delivered after
    /// that.
    pub(crate) fn migrate_and_at(
        &self,
        builder: Builder,
        (side, command): (Side, &str),
        act: impl FnOnce() + Send,
    ) -> (Outcome, Vec<Event>) {
        self.migrate_and_when(builder, side, nth(side, command, 1), act)
    }

    /// Migrates, and acts when a command to a side is on its way for which `when` holds.
    pub(crate) fn migrate_and_when(
        &self,
        builder: Builder,
        side: Side,
        when: impl Fn(&[Command]) -> bool + Send + 'static,
        act: impl FnOnce() + Send,
    ) -> (Outcome, Vec<Event>) {
        let held = self.monitor(side).hold(when);
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let acting = scope.spawn(|| {
                while !held.wait(LOOK_AGAIN) {
                    if over.load(Ordering::Relaxed) {
                        return false;
                    }
                }
                act();
                held.release();
                true
            });
            let migrated = migrate_when(builder, |_| true, |_| ());
            over.store(true, Ordering::Relaxed);
            assert!(acting.join().unwrap(), "no such command to the {side}: {:#?}", migrated.0);
            migrated
        })
    }
}
