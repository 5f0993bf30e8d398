//! Memory that is rewritten and verified, round and round.

use std::time::{Duration, Instant};

use qferry_guest::line::Line;
use qferry_guest::{Workload, page};

use crate::pace::{Busy, Pace, sleep_until};
use crate::port::{complain, say};
use crate::sys;

/// The number of pages between two looks at the clock. A slow guest still sleeps between such small batches.
const BATCH: u64 = 16;
/// The number of errors after which no more are told.
const ERRORS: u32 = 20;

/// Memory filled with generation 0.
pub(crate) fn fill(workload: &Workload) -> Result<&'static mut [u64], String> {
    let count = usize::try_from(workload.pages()).map_err(|_| "ram is too large".to_owned())? * page::WORDS;
    let memory = sys::words(count).map_err(|error| format!("no memory to keep: {error}"))?;
    for (number, page) in (0..).zip(memory.chunks_exact_mut(page::WORDS)) {
        page::fill(page, number, 0);
    }
    Ok(memory)
}

/// Verifies each page and, if asked to dirty memory, rewrites it with the next generation.
pub(crate) fn keep(memory: &mut [u64], workload: &Workload) {
    let rewrite = workload.dirty > 0;
    let rate = if rewrite { workload.dirty } else { workload.verify };
    let batches = rate.div_ceil(4096 * BATCH);
    if batches == 0 || memory.is_empty() {
        return;
    }
    // Slower than a batch a second is rounded up to one: enough for an idle guest.
    let mut pace = Pace::every(Duration::from_secs(1).div_f64((rate as f64 / (4096 * BATCH) as f64).max(1.0)));
    let mut busy = (rewrite && workload.compute).then(|| Busy::per_second(rate as f64 / (4096 * BATCH) as f64));
    let began = Instant::now();
    let report = (workload.pages() / 16).clamp(BATCH, 1024);
    let (mut verified, mut errors) = (0u64, 0);
    for generation in 0u64.. {
        let expected = if rewrite { generation } else { 0 };
        for (number, page) in (0..).zip(memory.chunks_exact_mut(page::WORDS)) {
            if verified % BATCH == 0 {
                sleep_until(burst(began, Instant::now(), workload));
                match &mut busy {
                    Some(busy) => busy.compute(),
                    None => {
                        while !pace.take(Instant::now()) {
                            pace.next().into_iter().for_each(sleep_until);
                        }
                    }
                }
            }
            if let Err(text) = page::check(page, number, expected) {
                errors += 1;
                if errors <= ERRORS {
                    complain(text);
                }
                page::fill(page, number, expected);
            }
            if rewrite {
                page::fill(page, number, generation + 1);
            }
            verified += 1;
            if verified % report == 0 {
                say(&Line::Pages(verified));
            }
        }
    }
}

/// The time at which memory may be rewritten: now, or at the next burst.
fn burst(began: Instant, now: Instant, workload: &Workload) -> Instant {
    if workload.calm.is_zero() {
        return now;
    }
    let cycle = workload.burst + workload.calm;
    let cycles = (now - began).as_nanos() / cycle.as_nanos();
    let begin = began + cycle * u32::try_from(cycles).unwrap_or_default();
    if now < begin + workload.burst { now } else { begin + cycle }
}
