//! A process on the screen of `qferry diagnose`: bounded, what is busy or stuck first.

use super::{plain_text::in_line, shell};
use crate::{
    diagnosis::{ProcessReport, SocketReport, ThreadReport},
    quantity::Bytes,
};
use std::fmt::Write;

/// The most threads, connections and images that are shown; the rest is counted.
const SHOWN: usize = 8;
/// The most characters of a command line that are shown.
const COMMAND: usize = 300;
/// The part of the time on a CPU, per cent, below which a thread that waits is not worth a line.
const BUSY: f64 = 1.0;

/// Adds a line of the screen, which stays one whatever it says.
pub(super) fn line(text: &mut String, name: &str, what: &str) {
    // a string takes everything
    writeln!(text, "  {name:<12} {}", in_line(what)).ok();
}

/// Describes the threads, connections, images, limits and the command line of a process.
pub(super) fn describe_process(text: &mut String, process: &ProcessReport) {
    let (busy, idle): (Vec<_>, Vec<_>) =
        process.threads.iter().enumerate().partition(|(number, thread)| *number == 0 || is_worth_a_line(thread));
    for (_, thread) in busy.iter().take(SHOWN) {
        line(text, "thread", &thread_words(thread));
    }
    count(text, "thread", busy.len().saturating_sub(SHOWN) + idle.len(), "thread");
    let mut sockets: Vec<&SocketReport> = process.sockets.iter().collect();
    sockets.sort_by_key(|socket| (socket.unsent + socket.unread == 0, socket.kind));
    for socket in sockets.iter().take(SHOWN) {
        line(text, "socket", &socket_words(socket));
    }
    count(text, "socket", sockets.len().saturating_sub(SHOWN), "connection");
    let mut images: Vec<_> = process.images.iter().collect();
    images.sort_by_key(|image| !image.writable);
    for image in images.iter().take(SHOWN) {
        line(text, "image", &format!("{} ({})", image.path, if image.writable { "written" } else { "read" }));
    }
    count(text, "image", images.len().saturating_sub(SHOWN), "open file");
    let locked = process.memlock_limit.map(|limit| format!("may lock {}", Bytes(limit)));
    let descriptors = process.descriptors.map(|count| match process.descriptor_limit {
        Some(limit) => format!("has {count} of {limit} descriptors"),
        None => format!("has {count} descriptors"),
    });
    let limits: Vec<String> = locked.into_iter().chain(descriptors).collect();
    if !limits.is_empty() {
        line(text, "limits", &limits.join(", "));
    }
    if !process.command.is_empty() {
        let command = shell::line(&process.command);
        let shown: String = command.chars().take(COMMAND).collect();
        let rest = if shown.len() < command.len() { " ..." } else { "" };
        line(text, "command", &format!("{shown}{rest}"));
    }
}

fn is_worth_a_line(thread: &ThreadReport) -> bool {
    thread.cpu_pct.is_some_and(|share| share >= BUSY)
        || !matches!(thread.state, 'S' | 'I')
        || thread.name.starts_with("mig/")
}

fn thread_words(thread: &ThreadReport) -> String {
    let share = thread.cpu_pct.map(|share| format!(" {share} % of a CPU,")).unwrap_or_default();
    let place = thread.waits_in.as_ref().map(|place| format!(" in {place}")).unwrap_or_default();
    format!("{}:{share} state {}{place}", thread.name, thread.state)
}

fn socket_words(socket: &SocketReport) -> String {
    let remote = if socket.remote.is_empty() { String::new() } else { format!(" -> {}", socket.remote) };
    let mut words =
        vec![format!("{} {}{remote}", socket.kind, socket.local).trim_end().to_owned(), socket.state.clone()];
    words.extend((socket.unsent > 0).then(|| format!("{} not taken", Bytes(socket.unsent))));
    words.extend((socket.unread > 0).then(|| format!("{} not read", Bytes(socket.unread))));
    words.extend((socket.retransmits > 0).then(|| format!("sent again {} times", socket.retransmits)));
    words.extend(socket.timer.filter(|_| socket.unsent > 0).map(|timer| format!("waits for {timer}")));
    words.extend(Some(&socket.peer).filter(|peer| !peer.is_empty()).cloned());
    words.join(", ")
}

fn count(text: &mut String, name: &str, number: usize, what: &str) {
    if number > 0 {
        let plural = if number == 1 { "" } else { "s" };
        line(text, name, &format!("{number} more {what}{plural}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_many_things_takes_a_screen() {
        let mut process = ProcessReport::default();
        for number in 0..500 {
            let mut thread = ThreadReport::default();
            (thread.name, thread.state, thread.cpu_pct) = (format!("CPU {number}/KVM"), 'R', Some(99.0));
            process.threads.push(thread);
            let mut socket = SocketReport::default();
            (socket.kind, socket.local, socket.unsent) =
                ("tcp", format!("10.0.0.1:{number}"), u64::from(number == 499));
            process.sockets.push(socket);
        }
        process.command = vec!["qemu".to_owned(), "x".repeat(5000)];
        let mut text = String::new();
        describe_process(&mut text, &process);
        assert!(text.lines().count() < 40 && text.lines().all(|line| line.len() < 400), "{text}");
        assert!(text.contains("492 more threads") && text.contains("10.0.0.1:499"), "{text}");
    }
}
