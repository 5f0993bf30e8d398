//! Keep-alive of the TCP connections between the two QEMUs: an end whose peer's host has gone away without a word
//! notices by itself, also after the engine has died.
//!
//! Pure. Linux sends the first probe only after two hours, and QEMU can set another time where its addresses have
//! `keep-alive-idle` (10.1), on connections that QEMU opens and on those that QEMU accepts. An address goes to each
//! QEMU in the words of that QEMU's own schema. Probes are sent only while nothing is on its way: what was sent and
//! never acknowledged is given up by TCP's own time, about 15 minutes, and the engine's deadlines bound that case.

use super::features::Features;
use crate::endpoint::Address;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// Seconds of silence before the first probe. A probe is one small packet, so its load is no reason to wait longer; the
/// mirrors of a guest that writes nothing are silent for as long as they are ready.
const IDLE: u64 = 3;
/// Seconds between two probes.
const INTERVAL: u64 = 1;
/// The probes without an answer after which the connection is given up. A link that is away for five seconds harms no
/// connection.
const COUNT: u64 = 5;

/// The time after which a connection to a host that is gone ends. The engine gives a RAM channel of postcopy up after
/// ten seconds without a byte, and that is the shortest time for which it lets a silent channel be, so QEMU's own end
/// comes before that.
pub const GONE_AFTER: Duration = Duration::from_secs(IDLE + INTERVAL * COUNT);

/// The members that an address of QMP gets beside host and port; none where the build cannot take them.
fn members(address: &Address, features: &Features) -> Vec<(&'static str, Value)> {
    match address {
        Address::Tcp { .. } if features.keep_alive_times => vec![
            ("keep-alive", json!(true)),
            ("keep-alive-idle", json!(IDLE)),
            ("keep-alive-interval", json!(INTERVAL)),
            ("keep-alive-count", json!(COUNT)),
        ],
        _ => Vec::new(),
    }
}

/// The members of the address without its type: of a `SocketAddress`, or of the `data` of a `SocketAddressLegacy`.
pub fn socket_members(address: &Address, features: &Features) -> Map<String, Value> {
    let place = match address {
        Address::Unix(path) => vec![("path", json!(path.display().to_string()))],
        Address::Tcp { host, port } => vec![("host", json!(host)), ("port", json!(port.to_string()))],
    };
    let all = place.into_iter().chain(members(address, features));
    all.map(|(name, value)| (name.to_owned(), value)).collect()
}

/// QEMU's word for the kind of address.
pub fn socket_type(address: &Address) -> &'static str {
    match address {
        Address::Unix(_) => "unix",
        Address::Tcp { .. } => "inet",
    }
}

/// The address as a `uri` of a migration, which has the same options.
pub fn uri(address: &Address, features: &Features) -> String {
    let option = |(name, value): (&str, Value)| match value {
        Value::Bool(true) => format!(",{name}=on"),
        value => format!(",{name}={value}"),
    };
    let options: String = members(address, features).into_iter().map(option).collect();
    format!("{address}{options}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::Schema;

    fn addresses() -> [Address; 3] {
        ["tcp:h:1", "tcp:[::1]:2", "/a"].map(|text| text.parse().expect("an address"))
    }

    #[test]
    fn only_tcp_and_only_where_the_build_can_take_it() {
        let older = Features::read(&Schema::default());
        let newer = Features { keep_alive_times: true, ..older.clone() };
        let options = ",keep-alive=on,keep-alive-idle=3,keep-alive-interval=1,keep-alive-count=5";
        for (address, tcp) in addresses().into_iter().zip([true, true, false]) {
            assert_eq!(uri(&address, &older), address.to_string());
            let expected = if tcp { format!("{address}{options}") } else { address.to_string() };
            assert_eq!(uri(&address, &newer), expected);
        }
        let [tcp, v6, unix] = addresses();
        let times = json!({"host": "h", "port": "1", "keep-alive": true, "keep-alive-idle": 3, "keep-alive-interval": 1,
            "keep-alive-count": 5});
        assert_eq!(Value::Object(socket_members(&tcp, &newer)), times);
        assert_eq!(Value::Object(socket_members(&tcp, &older)), json!({"host": "h", "port": "1"}));
        assert_eq!(socket_members(&v6, &newer)["host"], "::1");
        assert_eq!(Value::Object(socket_members(&unix, &newer)), json!({"path": "/a"}));
        assert_eq!([&tcp, &v6, &unix].map(socket_type), ["inet", "inet", "unix"]);
    }
}
