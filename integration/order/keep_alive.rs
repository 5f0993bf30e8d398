//! Keep-alive of the connections between the two QEMUs: each is told in the words of its own schema.

use super::*;
use qferry::internals::endpoint::Address;

const TIMES: [&str; 3] = ["keep-alive-idle", "keep-alive-interval", "keep-alive-count"];

fn tcp(port: u16) -> Address {
    format!("tcp:127.0.0.1:{port}").parse().unwrap()
}

/// Whether the arguments of the commands to source and destination, for NBD and for RAM, have the times.
async fn told(source_has: bool, destination_has: bool, is_tcp: bool) -> [bool; 4] {
    let mut model = model();
    for (side, has) in [(Source, source_has), (Destination, destination_has)] {
        if has {
            model::add_keep_alive_times(&mut model.state().qemu(side).schema);
        }
    }
    let builder = if is_tcp { model.builder().addresses(tcp(1), tcp(2)) } else { model.builder() };
    let run = model.follow(builder.start_here().unwrap()).await;
    moved(&model, &run);
    let commands = [
        (Source, "drive-mirror", "target"),
        (Destination, "nbd-server-start", "addr"),
        (Source, "migrate", "uri"),
        (Destination, "migrate-incoming", "uri"),
    ];
    let mut all = [false; 4];
    for (told, (side, command, argument)) in all.iter_mut().zip(commands) {
        let argument = model.fake(side).saw(command).await.arguments[argument].to_string();
        *told = argument.contains("keep-alive");
        assert!(TIMES.iter().all(|time| argument.contains(time) == *told), "{command}: {argument}");
    }
    all
}

#[tokio::test(start_paused = true)]
async fn each_side_is_told_what_its_own_schema_has() {
    assert_eq!(told(true, true, true).await, [true; 4]);
    assert_eq!(told(true, false, true).await, [true, false, true, false]);
    assert_eq!(told(false, true, true).await, [false, true, false, true]);
    assert_eq!(told(false, false, true).await, [false; 4]);
    assert_eq!(told(true, true, false).await, [false; 4], "a unix socket has no keep-alive");
}
