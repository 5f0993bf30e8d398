//! The table of RAM blocks that `x-query-ramblock` answers with.
//!
//! Pure. The text is made for people: its columns are found by their names, and a text that does not fit is not used
//! at all.

use crate::quantity::Bytes;
use std::collections::BTreeMap;

/// The sizes of a block of RAM, ROM or video memory, bytes. QEMU sends each block under its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamBlock {
    /// The size in use; a block of firmware tables may grow.
    pub used: u64,
    /// The largest size.
    pub total: u64,
    /// The size of the pages that back it.
    pub page: u64,
}

/// Reads the table; `None` for a text of another form. A block without a name is left out: such a block is a memory
/// backend that no device uses, and QEMU does not send it.
pub fn read(text: &str) -> Option<BTreeMap<String, RamBlock>> {
    let mut lines = text.lines();
    let (_, head) = lines.next()?.split_once("PSize")?;
    let columns: Vec<&str> = head.split_whitespace().collect();
    let column = |name: &str| columns.iter().position(|column| *column == name);
    let (used, total) = (column("Used")?, column("Total")?);
    let lines = lines.filter(|line| !line.trim().is_empty());
    let block = |line: &str| {
        // a name may contain spaces, so the columns behind it are counted from the end
        let mut rest = line;
        let mut cells: Vec<&str> = Vec::new();
        for _ in &columns {
            cells.insert(0, last_cell(&mut rest)?);
        }
        let (unit, size) = (last_cell(&mut rest)?, last_cell(&mut rest)?);
        let page = format!("{size}{unit}").parse::<Bytes>().ok().filter(|_| unit.ends_with('B'))?.0;
        let block = RamBlock { used: number(cells[used])?, total: number(cells[total])?, page };
        Some((rest.trim().to_owned(), block))
    };
    let mut blocks = lines.map(block).collect::<Option<BTreeMap<_, _>>>()?;
    blocks.remove("");
    Some(blocks)
}

/// Takes the last word off a line.
fn last_cell<'a>(line: &mut &'a str) -> Option<&'a str> {
    let text = line.trim_end();
    let (rest, cell) = text.rsplit_once(char::is_whitespace).unwrap_or(("", text));
    *line = rest;
    Some(cell).filter(|cell| !cell.is_empty())
}

fn number(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of QEMU 7.2.22, with a name that looks like columns.
    const OLD: &str = "              Block Name    PSize              Offset               Used              Total
                  pc.ram    4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000
    /rom@etc/acpi/tables    4 KiB  0x0000000004080000 0x0000000000020000 0x0000000000200000
  a name 4 KiB  0x1 long    2 MiB  0x0000000004000000 0x0000000000040000 0x0000000000040000
                            4 KiB  0x0000000044000000 0x0000000008000000 0x0000000008000000

";

    /// The table of QEMU 11.1.3.
    const NEW: &str = "              Block Name    PSize              Offset               Used              Total                HVA  RO
                  pc.ram    4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000 0x00007fef2fe00000  rw
   /rom@etc/table-loader    4 KiB  0x0000000004280000 0x0000000000001000 0x0000000000010000 0x00007fef80e00000  ro
";

    #[test]
    fn both_forms_of_the_table_are_read() {
        let block = |used, total| RamBlock { used, total, page: 4096 };
        let old = read(OLD).expect("a table");
        assert_eq!(old.len(), 3);
        assert_eq!(old["pc.ram"], block(64 << 20, 64 << 20));
        assert_eq!(old["/rom@etc/acpi/tables"], block(0x20000, 0x200_000));
        assert_eq!(old["a name 4 KiB  0x1 long"], RamBlock { page: 2 << 20, ..block(0x40000, 0x40000) });
        let new = read(NEW).expect("a table");
        assert_eq!(new["pc.ram"], old["pc.ram"]);
        assert_eq!(new["/rom@etc/table-loader"], block(0x1000, 0x10000));
    }

    #[test]
    fn what_is_no_such_table_is_not_guessed_at() {
        let (cut, no_total) = (&OLD[..OLD.len() - 30], OLD.replace("Total", "Sum"));
        for text in ["", "nothing here", cut, &no_total, &OLD.replace("4 KiB", "4 pages")] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
