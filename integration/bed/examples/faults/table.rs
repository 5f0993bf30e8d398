//! The results of the matrix, as lines while it runs and as the page that is kept.

use std::process::Command;

use crate::matrix::{Cell, Fault, Point};

/// One line on a cell.
pub(crate) fn tell(cell: &Cell) {
    let (fault, point) = (cell.fault.name(), cell.point.to_string());
    let took = cell.took.as_secs_f64();
    println!("{fault:<22} {point:<38} {:<54} {took:>5.1} s", outcome(cell, ", "));
    for wrong in &cell.wrong {
        println!("    WRONG: {wrong}");
    }
}

/// The outcome, the side that runs the guest, and the guest's longest pause.
fn outcome(cell: &Cell, between: &str) -> String {
    if !cell.wrong.is_empty() {
        return "WRONG".to_owned();
    }
    let ending = cell.ended.as_ref().map_or("?", |ended| ended.ending.as_str());
    let ending = if cell.recovered { format!("undetermined, recovered: {ending}") } else { ending.to_owned() };
    let runs = cell.standing.map_or("?", |standing| standing.told());
    let stood = cell.stood.map_or_else(String::new, |stood| format!("{between}{} ms", stood.as_millis()));
    format!("{ending}{between}{runs}{stood}")
}

/// The page in Markdown.
pub(crate) fn page(version: &str, points: &[Point], cells: &[Cell]) -> String {
    let date = Command::new("date").arg("--utc").arg("+%Y-%m-%d").output();
    let date = date.map(|date| String::from_utf8_lossy(&date.stdout).trim().to_owned()).unwrap_or_default();
    let wrong = cells.iter().filter(|cell| !cell.wrong.is_empty()).count();
    let mut text = format!(
        "# Injected faults and their outcome\n\n\
         `scripts/faults --write` made this page with QEMU {version} on {date}: {} cells, {wrong} of them wrong.\n\n\
         In each cell one fault strikes at one point of a migration, while the guest writes to its disk and its memory all the \
         time. After the engine has ended, the test asks both QEMUs, past the engine, who runs the guest; the guest checks \
         every write that was acknowledged and all of its memory; the engine must have left nothing behind; and another \
         migration must then succeed. Where the engine ended `undetermined`, a recovery from its journal follows once the \
         fault is over (a frozen QEMU is thawed, a late monitor has caught up), and the cell judges both together.\n\n\
         A cell tells how the engine ended, who runs the guest, and the guest's longest pause from the fault on (the guest \
         beats every 5 ms, and on a busy machine it sometimes waits for a processor). `-` is a fault that makes no sense at \
         that point.\n\n\
         The points are the begins of phases and, in the switchover, the moments at which a command has been sent and is not \
         yet delivered.\n\n## Faults\n\n",
        cells.len()
    );
    for fault in Fault::ALL {
        text += &format!("- `{}`: {}\n", fault.name(), fault.told());
    }
    for fault in Fault::ALL {
        let of: Vec<&Cell> = cells.iter().filter(|cell| cell.fault == fault).collect();
        if of.is_empty() {
            continue;
        }
        text += &format!("\n## {}\n\n| point | engine | guest | longest pause |\n|---|---|---|---|\n", fault.name());
        for point in points {
            let row = match of.iter().find(|cell| cell.point == *point) {
                Some(cell) if !cell.wrong.is_empty() => format!("WRONG | {} |", cell.wrong.join("; ")),
                Some(cell) => {
                    let told = outcome(cell, " | ");
                    if cell.stood.is_some() { told } else { format!("{told} |") }
                }
                None => match fault.left_out(point) {
                    Some(why) => format!("- | {why} |"),
                    None => continue,
                },
            };
            text += &format!("| {point} | {row} |\n");
        }
    }
    text
}
