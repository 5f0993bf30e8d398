//! The link between the two QEMUs of a sweep: the words of the commands that make it, and what their errors mean.
//!
//! Pure. Each end is a network namespace. The QEMUs of a guest that goes to and fro take turns with the two.

use super::{
    spec::SweepLink,
    spec_error::{SpecError, wrong},
};
use std::fmt;

/// The device at each end.
const DEVICE: &str = "link0";
/// The ports of RAM and of NBD. The namespace is the sweep's own, so they are free.
const RAM_PORT: u16 = 4445;
const NBD_PORT: u16 = 10809;
/// The bytes of a packet.
const PACKET: u64 = 1500;
/// The bits a second by which packets under way are counted where no rate is asked for.
const UNSHAPED: u64 = 10_000_000_000;
/// The programs that make a link, and the packages that have them.
const PROGRAMS: [(&str, &str); 4] =
    [("unshare", "util-linux"), ("nsenter", "util-linux"), ("ip", "iproute2"), ("tc", "iproute2")];

/// One of the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkEnd {
    /// Where a guest boots.
    First,
    /// Where it moves to first.
    Second,
}

impl LinkEnd {
    pub(crate) const BOTH: [Self; 2] = [Self::First, Self::Second];

    /// The other end.
    pub(crate) fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    /// The address of the host at this end.
    pub(crate) fn address(self) -> &'static str {
        match self {
            Self::First => "10.0.0.1",
            Self::Second => "10.0.0.2",
        }
    }

    /// The addresses at which a destination at this end listens, with their options of `qferry migrate`.
    pub(crate) fn listens(self) -> [(&'static str, String); 2] {
        let tcp = |port: u16| format!("tcp:{}:{port}", self.address());
        [("migrate-address", tcp(RAM_PORT)), ("nbd-address", tcp(NBD_PORT))]
    }
}

impl SweepLink {
    /// Whether there is to be a link at all. One that is not shaped is asked for by `unshaped = true`.
    pub(crate) fn is_asked_for(&self) -> bool {
        *self != Self::default()
    }

    /// The words behind `root` of the command `tc qdisc`: what shapes that which an end sends.
    fn discipline(&self) -> Vec<String> {
        let bits = self.rate.map(|rate| rate.0.saturating_mul(8));
        let words = match (bits, self.delay, &self.loss) {
            (None, None, None) => "noqueue".to_owned(),
            (Some(bits), None, None) => {
                // With a burst of less than 4 ms a single stream does not reach the rate on a busy host, whose timer
                // comes late.
                let burst = (bits / 8 / 250).max(16 << 10);
                format!("tbf rate {bits}bit burst {burst} limit {}", (2 * burst).max(256 << 10))
            }
            (bits, delay, loss) => {
                let delay = delay.unwrap_or_default();
                // Packets that wait here are those under way: twice as many as the rate fills the delay with.
                let packets = u128::from(bits.unwrap_or(UNSHAPED) / 8 / PACKET) * delay.as_micros() / 1_000_000;
                let mut words = format!("netem limit {}", 1000 + 2 * packets.min(500_000));
                words += &format!(" delay {}us", delay.as_micros());
                // `limits` has seen that it can be read
                if let Some(percent) = loss.as_ref().and_then(|loss| lost(loss).ok()) {
                    words += &format!(" loss {percent}%");
                }
                words + &bits.map_or(String::new(), |bits| format!(" rate {bits}bit"))
            }
        };
        words.split(' ').map(str::to_owned).collect()
    }
}

impl fmt::Display for SweepLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.rate.map(|rate| match rate.0 as f64 * 8.0 {
            bits if bits >= 1e9 => format!("{} Gbit/s", bits / 1e9),
            bits => format!("{} Mbit/s", bits / 1e6),
        }));
        parts.extend(self.delay.map(|delay| format!("{} each way", humantime::format_duration(delay))));
        parts.extend(self.loss.as_ref().map(|loss| format!("{loss} lost")));
        match parts.as_slice() {
            [] if self.unshaped => f.write_str("as fast as it is"),
            [] => f.write_str("unix sockets"),
            parts => f.write_str(&parts.join(", ")),
        }
    }
}

/// Per cent of packets that are lost.
///
/// # Errors
/// The text is no such number, or more than half of all are to be lost.
pub(super) fn lost(text: &str) -> Result<f64, SpecError> {
    let number = text.strip_suffix('%').map(str::trim).filter(|text| !text.is_empty());
    let is_plain = |text: &&str| text.chars().all(|c| c.is_ascii_digit() || c == '.');
    let percent = number.filter(is_plain).and_then(|number| number.parse::<f64>().ok());
    percent
        .filter(|percent| (0.0..=50.0).contains(percent))
        .ok_or_else(|| wrong("link.loss", text, "write per cent of packets, from \"0%\" to \"50%\", such as \"0.1%\""))
}

/// The programs that are not there, with the remedy.
pub(crate) fn missing_programs(is_there: impl Fn(&str) -> bool) -> Option<String> {
    let missing: Vec<_> = PROGRAMS.into_iter().filter(|(program, _)| !is_there(program)).collect();
    let mut packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    packages.dedup();
    let programs: Vec<&str> = missing.iter().map(|(program, _)| *program).collect();
    (!missing.is_empty())
        .then(|| format!("a link needs {}, not found here: install {}", programs.join(" and "), packages.join(" and ")))
}

/// Why an end cannot be made, with the remedy.
pub(crate) fn no_namespace(said: &str, is_root: bool) -> String {
    let remedy = if is_root {
        "give the sweep the capability CAP_SYS_ADMIN"
    } else {
        "start the sweep as root, or let users make namespaces: see the sysctls user.max_user_namespaces, \
         kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns"
    };
    format!("a link needs network namespaces, and none can be made here ({said}): {remedy}")
}

/// What a command needs of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkNeed {
    /// Pairs of devices.
    Pair,
    /// The token bucket, for a rate.
    Bucket,
    /// Delay and loss.
    Netem,
    /// Nothing that may be missing.
    Nothing,
}

/// One command that makes or changes the link, run at one end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LinkStep {
    pub(crate) end: LinkEnd,
    pub(crate) words: Vec<String>,
    pub(crate) need: LinkNeed,
}

impl LinkStep {
    fn new(end: LinkEnd, words: &str) -> Self {
        Self { end, words: words.split(' ').map(str::to_owned).collect(), need: LinkNeed::Nothing }
    }

    /// Why it failed, by what its program said.
    pub(crate) fn refused(&self, said: &str) -> String {
        let said = said.trim_end_matches('.');
        let (what, module, otherwise) = match self.need {
            // Nothing else can be wrong with these words: `limits` has seen the values.
            LinkNeed::Pair => ("pairs of devices", "veth", "leave out the table `link`"),
            LinkNeed::Bucket => ("tbf, by which a rate is kept,", "sch_tbf", "leave out link.rate"),
            LinkNeed::Netem => {
                ("netem, by which packets are delayed and lost,", "sch_netem", "leave out link.delay and link.loss")
            }
            LinkNeed::Nothing => return format!("the link cannot be made: {} said: {said}", self.words.join(" ")),
        };
        let program = self.words.first().map_or("the program", String::as_str);
        format!(
            "{what} cannot be had of this machine's kernel ({program} said: {said}): load its module {module} \
             (modprobe {module}, as root), use a kernel that has it, or {otherwise}"
        )
    }
}

/// How the two ends are made and entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LinkWays {
    /// Whether the sweep runs as root, and needs no user namespace.
    pub(crate) is_root: bool,
}

impl LinkWays {
    /// The words before a program that is to run in the namespaces of a process.
    pub(crate) fn enter(self, holder: u32) -> Vec<String> {
        self.join(holder, " -n")
    }

    /// The command of the process that holds an end: it ends with its standard input, which is the sweep's. The user
    /// namespace of the first holds both ends.
    pub(crate) fn hold(self, first: Option<u32>) -> Vec<String> {
        let mut words = match first {
            Some(first) if !self.is_root => self.join(first, ""),
            _ => Vec::new(),
        };
        let own = if self.is_root || first.is_some() { "unshare -n -- cat" } else { "unshare -U -r -n -- cat" };
        words.extend(own.split(' ').map(str::to_owned));
        words
    }

    fn join(self, holder: u32, net: &str) -> Vec<String> {
        // Groups are kept, so that /dev/kvm can be opened by them.
        let user = if self.is_root { "" } else { " -U --preserve-credentials" };
        format!("nsenter -t {holder}{user}{net} --").split(' ').map(str::to_owned).collect()
    }
}

/// The commands that join the two ends; `second` is a process in the second.
pub(crate) fn joining(second: u32) -> Vec<LinkStep> {
    let pair = format!("ip link add name {DEVICE} type veth peer name {DEVICE} netns {second}");
    let mut steps = vec![LinkStep { need: LinkNeed::Pair, ..LinkStep::new(LinkEnd::First, &pair) }];
    for end in LinkEnd::BOTH {
        steps.push(LinkStep::new(end, "ip link set dev lo up"));
        steps.push(LinkStep::new(end, &format!("ip address add {}/24 dev {DEVICE}", end.address())));
        steps.push(LinkStep::new(end, &format!("ip link set dev {DEVICE} up")));
    }
    steps
}

/// The commands that shape the link, at both ends.
pub(crate) fn shaping(link: &SweepLink) -> Vec<LinkStep> {
    let need = match link {
        SweepLink { delay: None, loss: None, rate: None, .. } => LinkNeed::Nothing,
        SweepLink { delay: None, loss: None, .. } => LinkNeed::Bucket,
        _ => LinkNeed::Netem,
    };
    // What is lost is a packet then, and not all that the sender has given to the device at once.
    let together = if link.loss.is_some() { 1 } else { 65535 };
    let mut steps = Vec::new();
    for end in LinkEnd::BOTH {
        let mut shape = LinkStep::new(end, &format!("tc qdisc replace dev {DEVICE} root"));
        shape.words.extend(link.discipline());
        steps.push(LinkStep { need, ..shape });
        steps.push(LinkStep::new(end, &format!("ip link set dev {DEVICE} gso_max_segs {together}")));
    }
    steps
}

/// The bytes that an end's device has received and sent, by the kernel's table of its devices.
pub(crate) fn carried(table: &str) -> Option<u64> {
    let (_, counters) = table.lines().filter_map(|row| row.split_once(':')).find(|(name, _)| name.trim() == DEVICE)?;
    // Eight counters of received packets, and then those of sent ones, bytes first.
    let counters: Vec<u64> = counters.split_whitespace().map_while(|counter| counter.parse().ok()).collect();
    counters.first()?.checked_add(*counters.get(8)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(text: &str) -> SweepLink {
        toml::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn the_link_is_shaped_at_both_ends_by_what_was_asked_for() {
        use LinkNeed::{Bucket, Netem, Nothing};
        let cases = [
            ("", "noqueue", 65535, Nothing),
            ("unshaped = true", "noqueue", 65535, Nothing),
            ("rate = \"1Gbit/s\"", "tbf rate 1000000000bit burst 500000 limit 1000000", 65535, Bucket),
            ("rate = \"100Mbit/s\"", "tbf rate 100000000bit burst 50000 limit 262144", 65535, Bucket),
            ("rate = \"1Mbit/s\"", "tbf rate 1000000bit burst 16384 limit 262144", 65535, Bucket),
            ("delay = \"0ms\"", "netem limit 1000 delay 0us", 65535, Netem),
            ("delay = \"5ms\"", "netem limit 9332 delay 5000us", 65535, Netem),
            ("rate = \"1Gbit/s\"\ndelay = \"50ms\"", "netem limit 9332 delay 50000us rate 1000000000bit", 65535, Netem),
            ("loss = \"0.1%\"", "netem limit 1000 delay 0us loss 0.1%", 1, Netem),
            (
                "rate = \"100Mbit/s\"\ndelay = \"1500us\"\nloss = \"2 %\"",
                "netem limit 1024 delay 1500us loss 2% rate 100000000bit",
                1,
                Netem,
            ),
            (
                "rate = \"100Gbit/s\"\ndelay = \"10s\"",
                "netem limit 1001000 delay 10000000us rate 100000000000bit",
                65535,
                Netem,
            ),
        ];
        for (text, discipline, together, need) in cases {
            let steps = shaping(&link(text));
            let words: Vec<String> = steps.iter().map(|step| step.words.join(" ")).collect();
            let shape = format!("tc qdisc replace dev link0 root {discipline}");
            let segments = format!("ip link set dev link0 gso_max_segs {together}");
            assert_eq!(words, [&*shape, &*segments, &*shape, &*segments], "{text}");
            let ends: Vec<LinkEnd> = steps.iter().map(|step| step.end).collect();
            assert_eq!(ends, [LinkEnd::First, LinkEnd::First, LinkEnd::Second, LinkEnd::Second]);
            assert_eq!((steps[0].need, steps[2].need, steps[1].need), (need, need, Nothing), "{text}");
        }
    }

    #[test]
    fn a_link_is_told_as_people_say_it() {
        let cases = [
            ("", "unix sockets"),
            ("rate = \"100Mbit/s\"", "100 Mbit/s"),
            ("rate = \"2.5Gbit/s\"\ndelay = \"5ms\"\nloss = \"0.1%\"", "2.5 Gbit/s, 5ms each way, 0.1% lost"),
            ("delay = \"0s\"", "0s each way"),
            ("unshaped = true", "as fast as it is"),
        ];
        for (text, told) in cases {
            assert_eq!(link(text).to_string(), told);
            assert_eq!(link(text).is_asked_for(), !text.is_empty());
        }
    }

    #[test]
    fn loss_is_per_cent_of_packets() {
        for (text, percent) in [("0%", 0.0), ("0.1%", 0.1), ("50 %", 50.0)] {
            assert_eq!(lost(text), Ok(percent));
        }
        for text in ["", "%", "0.1", "51%", "-1%", "nan%", "1e1%", "1.2.3%", "+1%"] {
            let error = lost(text).expect_err(text).to_string();
            assert!(error.contains("link.loss") && error.contains("0.1%"), "{error}");
        }
    }

    #[test]
    fn the_ends_are_made_with_a_user_namespace_only_where_the_sweep_is_not_root() {
        let words = |is_root| {
            let ways = LinkWays { is_root };
            [ways.hold(None), ways.hold(Some(7)), ways.enter(8)].map(|words| words.join(" "))
        };
        assert_eq!(words(true), ["unshare -n -- cat", "unshare -n -- cat", "nsenter -t 8 -n --"]);
        assert_eq!(
            words(false),
            [
                "unshare -U -r -n -- cat",
                "nsenter -t 7 -U --preserve-credentials -- unshare -n -- cat",
                "nsenter -t 8 -U --preserve-credentials -n --"
            ]
        );
        let joined: Vec<_> = joining(9).into_iter().map(|step| (step.end, step.words.join(" "))).collect();
        let (first, second) = (LinkEnd::First, LinkEnd::Second);
        let expected = [
            (first, "ip link add name link0 type veth peer name link0 netns 9"),
            (first, "ip link set dev lo up"),
            (first, "ip address add 10.0.0.1/24 dev link0"),
            (first, "ip link set dev link0 up"),
            (second, "ip link set dev lo up"),
            (second, "ip address add 10.0.0.2/24 dev link0"),
            (second, "ip link set dev link0 up"),
        ];
        assert_eq!(joined, expected.map(|(end, words)| (end, words.to_owned())));
        assert_eq!(second.listens().map(|(_, address)| address), ["tcp:10.0.0.2:4445", "tcp:10.0.0.2:10809"]);
    }

    #[test]
    fn what_is_missing_is_told_with_its_remedy() {
        assert_eq!(missing_programs(|_| true), None);
        let cases: [(&[&str], &str); 3] = [
            (&["unshare", "nsenter", "ip"], "a link needs tc, not found here: install iproute2"),
            (&["unshare", "nsenter"], "a link needs ip and tc, not found here: install iproute2"),
            (&["nsenter", "tc"], "a link needs unshare and ip, not found here: install util-linux and iproute2"),
        ];
        for (installed, told) in cases {
            assert_eq!(missing_programs(|program| installed.contains(&program)).as_deref(), Some(told));
        }
        let refused = |step: &LinkStep| step.refused("Error: Specified qdisc kind is unknown.");
        for (text, words) in [
            ("delay = \"5ms\"", ["netem", "module sch_netem", "leave out link.delay and link.loss"]),
            ("rate = \"1Gbit/s\"", ["tbf", "module sch_tbf", "leave out link.rate"]),
        ] {
            let told = refused(&shaping(&link(text))[0]);
            assert!(words.iter().all(|word| told.contains(word)) && told.contains("tc said: Error: "), "{told}");
        }
        let told = refused(&joining(9)[0]);
        assert!(told.contains("module veth") && told.contains("ip said"), "{told}");
        assert!(refused(&joining(9)[3]).contains("ip link set dev link0 up said: Error"));
        let told = no_namespace("unshare: unshare failed: Operation not permitted", false);
        assert!(told.contains("as root") && told.contains("user.max_user_namespaces"), "{told}");
        assert!(no_namespace("no", true).contains("CAP_SYS_ADMIN"));
    }

    #[test]
    fn the_devices_counters_are_those_of_both_directions() {
        let table = "Inter-|   Receive   |  Transmit\n face |bytes    packets errs drop fifo frame compressed \
                     multicast|bytes    packets errs drop fifo colls carrier compressed\n    lo:       9       0    0    0    0     0          0         0        9       0    0    0    0     0       0          0\n link0:       5       0    0    0    0     0          0         0        70       0    0    0    0     0       0          0\n";
        assert_eq!(carried(table), Some(75));
        assert_eq!(carried(&table.replace("link0", "link1")), None);
        assert_eq!(carried(" link0: 5 6"), None);
    }
}
