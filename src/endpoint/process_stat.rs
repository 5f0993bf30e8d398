//! The file `stat` of a process or a thread in `/proc`, taken apart.
//!
//! Pure.

/// What the kernel tells of a process or a thread in one line (proc_pid_stat(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessStat<'a> {
    /// The id, as the reader of the file sees it.
    pub id: u32,
    /// The name, which may hold anything.
    pub name: &'a str,
    /// The state: `R`, `S`, `D`, `T`, `Z` and others.
    pub state: char,
    /// The time on a CPU so far, of the program and of the kernel for it, in ticks, of which a second has 100.
    pub ticks: u64,
    /// When it began, in ticks since the host was booted; `None` where the line is torn before that.
    pub began: Option<u64>,
}

impl<'a> ProcessStat<'a> {
    /// Reads the line; `None` where it is not one.
    pub fn read(line: &'a str) -> Option<Self> {
        // the name is in brackets and may hold brackets itself
        let (before, after) = line.rsplit_once(')')?;
        let (id, name) = before.split_once('(')?;
        let fields: Vec<&str> = after.split_whitespace().collect();
        // the state is field 3 of the manual, and the first of these
        let number = |field: usize| fields.get(field - 3).and_then(|number| number.parse::<u64>().ok());
        let ticks = |field| number(field).unwrap_or_default();
        Some(Self {
            id: id.trim().parse().ok()?,
            name,
            state: fields.first()?.chars().next()?,
            ticks: ticks(14).saturating_add(ticks(15)),
            began: number(22),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let line = "12 (CPU 0/TCG) x) S 1 12 12 0 -1 4194560 1 2 3 4 50 7 0 0 20 0 3 0 99";
        let read = ProcessStat::read(line).expect("a line");
        assert_eq!(read, ProcessStat { id: 12, name: "CPU 0/TCG) x", state: 'S', ticks: 57, began: Some(99) });
        let line = "42 (a) b (c) Z 1 42 42 0 -1 4194560 1 0 0 0 150 25 0 0 20 0 5 0 100 200";
        let read = ProcessStat::read(line).expect("a line");
        assert_eq!((read.name, read.state, read.ticks), ("a) b (c", 'Z', 175));
        for torn in ["42 (a", "", "12", "12 (x", "12 (x)", "12 )x( S", "x (y) S"] {
            assert_eq!(ProcessStat::read(torn), None, "{torn}");
        }
    }
}
