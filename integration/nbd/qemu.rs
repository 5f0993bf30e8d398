//! The client against the `qemu-nbd` of a real QEMU, with images made by `qemu-img` and `qemu-io` of the same build.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use qferry::internals::nbd::{AllocationExtent, DepthExtent, MetaContexts, NbdClient, NbdError, NbdOptions};
use qferry_bed::Build;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

const MIB: u64 = 1 << 20;

/// A `qemu-nbd` process, killed when the value is dropped.
struct QemuNbd {
    child: Child,
    socket: PathBuf,
    _directory: TempDir,
}

impl QemuNbd {
    fn serve(build: &Build, image: &Path, directory: TempDir) -> Self {
        let socket = directory.path().join("nbd.sock");
        let child = Command::new(build.program("qemu-nbd"))
            .args(["--allocation-depth", "-A", "-r", "-e", "4", "-t", "-f", "qcow2", "-x", "disk", "-k"])
            .arg(&socket)
            .arg(image)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, socket, _directory: directory }
    }

    async fn dial(&mut self) -> UnixStream {
        loop {
            if let Ok(stream) = UnixStream::connect(&self.socket).await {
                return stream;
            }
            assert!(self.child.try_wait().unwrap().is_none(), "qemu-nbd has exited");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn connect(&mut self) -> NbdClient {
        NbdClient::connect(self.dial().await, "disk", NbdOptions::default()).await.unwrap()
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        // The test may have killed the process already.
        drop(self.child.kill());
        self.child.wait().unwrap();
    }
}

fn locate_build() -> Build {
    Build::locate("10.0.13").unwrap()
}

fn make_scratch() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn create_image(build: &Build, image: &Path, options: &[&str], size: u64) {
    let (image, size) = (image.to_str().unwrap(), size.to_string());
    build.img([&["create", "-q", "-f", "qcow2"], options, &[image, &size]].concat()).unwrap();
}

/// A qcow2 image over a smaller qcow2 image; `content` is the content that a guest sees.
struct Disk {
    image: PathBuf,
    size: u64,
    content: Vec<u8>,
}

impl Disk {
    fn make(build: &Build, directory: &Path) -> Self {
        let size = 8 * MIB + 5 * 512;
        let (base, image) = (directory.join("base.qcow2"), directory.join("top.qcow2"));
        create_image(build, &base, &[], 4 * MIB);
        build.io(&base, ["write -P 0x11 0 1M", "write -P 0x22 2M 1M"]).unwrap();
        create_image(build, &image, &["-b", base.to_str().unwrap(), "-F", "qcow2"], size);
        let writes = ["write -P 0x33 512k 64k", "write -z 2M 64k", "write -P 0x44 6M 128k", "write -P 0x55 8M 2560"];
        build.io(&image, writes).unwrap();
        let mut content = vec![0; size as usize];
        let mut put = |start: u64, length: u64, byte| content[start as usize..(start + length) as usize].fill(byte);
        put(0, MIB, 0x11);
        put(2 * MIB, MIB, 0x22);
        put(512 << 10, 64 << 10, 0x33);
        put(2 * MIB, 64 << 10, 0);
        put(6 * MIB, 128 << 10, 0x44);
        put(8 * MIB, 2560, 0x55);
        Self { image, size, content }
    }
}

#[tokio::test]
async fn qemu_is_read_with_eight_in_flight() {
    let (build, directory) = (locate_build(), make_scratch());
    let disk = Disk::make(&build, directory.path());
    let mut server = QemuNbd::serve(&build, &disk.image, directory);
    let client = server.connect().await;
    assert_eq!(client.size(), disk.size);
    assert!(client.is_read_only());
    // The steps are a length without any alignment, and the whole image at once.
    for step in [77_777, 32 << 20] {
        let mut content = vec![0xff; disk.size as usize];
        let (mut at, mut reads) = (0, JoinSet::new());
        loop {
            while reads.len() < 8 && at < disk.size {
                let (client, start, length) = (client.clone(), at, step.min(disk.size - at));
                reads.spawn(async move { (start, client.read(start, length as u32).await.unwrap()) });
                at += length;
            }
            let Some(read) = reads.join_next().await else { break };
            let (start, bytes) = read.unwrap();
            content[start as usize..start as usize + bytes.len()].copy_from_slice(&bytes);
        }
        assert!(content == disk.content, "what was read in steps of {step} is not what was written");
    }
    client.close().await;
}

#[tokio::test]
async fn qemu_reports_extents_and_depths() {
    let (build, directory) = (locate_build(), make_scratch());
    let disk = Disk::make(&build, directory.path());
    let mut server = QemuNbd::serve(&build, &disk.image, directory);
    let client = server.connect().await;
    let kib = |kib: u64| kib << 10;
    let end = disk.size;
    let cut = |bounds: &[(u64, u32)]| {
        let ends = bounds.iter().skip(1).map(|bound| bound.0).chain([end]);
        bounds.iter().zip(ends).map(|((start, value), end)| (*start, end - start, *value)).collect::<Vec<_>>()
    };
    let extents = client.query_extents(0, end).await.unwrap();
    let wanted = cut(&[
        (0, 0),
        (kib(1024), 3),
        (kib(2048 + 64), 0),
        (kib(3072), 3),
        (kib(6144), 0),
        (kib(6144 + 128), 3),
        (kib(8192), 0),
    ]);
    let flat =
        |extent: &AllocationExtent| (extent.start, extent.length, u32::from(extent.hole) | u32::from(extent.zero) << 1);
    assert_eq!(extents.iter().map(flat).collect::<Vec<_>>(), wanted);
    let depths = client.query_depths(0, end).await.unwrap();
    let wanted = cut(&[
        (0, 2),
        (kib(512), 1),
        (kib(576), 2),
        (kib(1024), 0),
        (kib(2048), 1),
        (kib(2048 + 64), 2),
        (kib(3072), 0),
        // Zeros behind the end of a shorter backing file count as allocated in that file.
        (kib(4096), 2),
        (kib(6144), 1),
        (kib(6144 + 128), 2),
        (kib(8192), 1),
    ]);
    assert_eq!(depths.iter().map(|depth| (depth.start, depth.length, depth.depth)).collect::<Vec<_>>(), wanted);
    // The result for a part of the image covers exactly that part.
    let within = client.query_depths(kib(500), kib(20)).await.unwrap();
    let depth = |start, length, depth| DepthExtent { start, length, depth };
    assert_eq!(within, [depth(kib(500), kib(12), 2), depth(kib(512), kib(8), 1)]);
}

#[tokio::test]
async fn qemu_has_no_export_of_that_name() {
    let (build, directory) = (locate_build(), make_scratch());
    let image = directory.path().join("disk.qcow2");
    create_image(&build, &image, &[], MIB);
    let mut server = QemuNbd::serve(&build, &image, directory);
    let without = MetaContexts { allocation: false, depth: false };
    for contexts in [MetaContexts::default(), without] {
        let options = NbdOptions { contexts, ..NbdOptions::default() };
        let error = NbdClient::connect(server.dial().await, "disc", options).await.unwrap_err();
        assert!(matches!(&error, NbdError::NoSuchExport { name, .. } if name == "disc"), "{error:?}");
        assert!(error.to_string().starts_with("the server has no export named \"disc\""), "{error}");
    }
    // The server still serves other clients.
    assert_eq!(server.connect().await.size(), MIB);
}

#[tokio::test]
async fn a_killed_qemu_fails_all_that_wait() {
    let (build, directory) = (locate_build(), make_scratch());
    let disk = Disk::make(&build, directory.path());
    let mut server = QemuNbd::serve(&build, &disk.image, directory);
    let client = server.connect().await;
    assert_eq!(client.read(0, 1).await.unwrap()[0], 0x11);
    kill_process(Pid::from_child(&server.child), Signal::STOP).unwrap();
    let mut waiting = JoinSet::new();
    for _ in 0..8 {
        let (reader, asker) = (client.clone(), client.clone());
        waiting.spawn(async move { reader.read(0, 8 << 20).await.unwrap_err() });
        waiting.spawn(async move { asker.query_extents(0, 8 << 20).await.unwrap_err() });
    }
    // The pause lets the requests be sent. A request that is not sent in time does not weaken the test.
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(waiting.try_join_next().is_none());
    server.child.kill().unwrap();
    for error in waiting.join_all().await {
        assert!(matches!(error, NbdError::Ended), "{error:?}");
    }
    assert!(matches!(client.query_depths(0, 1).await, Err(NbdError::Ended)));
}

#[tokio::test]
async fn a_large_sparse_image_takes_few_requests() {
    let (build, directory) = (locate_build(), make_scratch());
    let image = directory.path().join("sparse.qcow2");
    let size = 10 << 30;
    create_image(&build, &image, &[], size);
    let mut server = QemuNbd::serve(&build, &image, directory);
    let (client_end, mut relay_end) = tokio::io::duplex(1 << 16);
    let mut stream = server.dial().await;
    let relay = tokio::spawn(async move { tokio::io::copy_bidirectional(&mut relay_end, &mut stream).await.unwrap() });
    let client = NbdClient::connect(client_end, "disk", NbdOptions::default()).await.unwrap();
    assert_eq!(
        client.query_extents(0, size).await.unwrap(),
        [AllocationExtent { start: 0, length: size, zero: true, hole: true }]
    );
    assert_eq!(client.query_depths(0, size).await.unwrap(), [DepthExtent { start: 0, length: size, depth: 0 }]);
    drop(client);
    // The client sends a handshake and a few requests of 28 bytes, not a request for every 32 MiB.
    let (asked, answered) = relay.await.unwrap();
    assert!(asked < 1024 && answered < 1024, "{asked} bytes sent, {answered} bytes received");
}
