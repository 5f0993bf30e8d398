//! Recordings: the ring of transcripts that migrations leave, and what they tell afterwards.
//!
//! `qmp::transcript` owns the format and the writer; the room owns the folder in which transcripts are kept by default,
//! and the readers of files that anybody may have made. Nothing here may take memory by the size of a file, and nothing
//! here may end or delay a migration.

mod foreign;
mod reader;
mod report;
mod ring;
mod runs;
mod series;
mod timeline;

pub use foreign::{ForeignContent, ForeignLine, foreign_value, read_foreign};
pub use reader::{
    BoundedLines, LINE_LIMIT, ReadFaults, RecordedContent, RecordedEntry, RecordedLine, RecordingReader, is_question,
    read_line,
};
pub use report::{BoundedRows, CommandTimes, RecordedBlackout, ReportRow, ReportedFact, TranscriptReport};
pub use ring::{FILE_LIMIT, RingBounds, RingError, RingFile, TranscriptRing, finish, has_writer, open_plain};
pub use runs::{RunInfo, RunState, read_run};
pub use series::{BoundedSeries, SeriesPoint};
pub use timeline::{DiskTimeline, RecordedSpan, RecordedTimeline};
