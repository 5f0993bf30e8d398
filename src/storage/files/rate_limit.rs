//! A ceiling on how fast something is read: one for all that is read at the same time.

use crate::quantity::Rate;
use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep_until};

/// Spaces requests so that together they stay below a rate; or not at all.
#[derive(Debug)]
pub struct RateLimit {
    rate: Option<Rate>,
    free: Mutex<Instant>,
}

impl RateLimit {
    /// One for a rate.
    pub fn new(rate: Option<Rate>) -> Self {
        Self { rate, free: Mutex::new(Instant::now()) }
    }

    /// Waits until so many bytes may be asked for.
    pub async fn pass(&self, bytes: u64) {
        let Some(Rate(rate)) = self.rate else { return };
        let took = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        let turn = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = (*free).max(Instant::now());
            *free = turn + took;
            turn
        };
        sleep_until(turn).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn together_they_stay_below_the_rate() {
        let ceiling = RateLimit::new(Some(Rate(1000)));
        let began = Instant::now();
        tokio::join!(ceiling.pass(500), ceiling.pass(500), ceiling.pass(1000), ceiling.pass(1));
        // the last one begins when those before it are through
        assert_eq!(began.elapsed().as_millis(), 2000);
        RateLimit::new(None).pass(u64::MAX).await;
        assert_eq!(began.elapsed().as_millis(), 2000);
    }
}
