//! Keeps a panic of the engine from the embedder.

use std::{
    any::Any,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::Poll,
};

/// Does the work to its end, or to its panic, whose words it gives. All that the work held is dropped by then.
pub(crate) async fn caught<T>(work: Pin<Box<dyn Future<Output = T> + Send>>) -> Result<T, String> {
    let mut work = Some(work);
    let ended = poll_fn(|context| {
        let Some(pending) = work.as_mut() else { return Poll::Pending };
        match catch_unwind(AssertUnwindSafe(|| pending.as_mut().poll(context))) {
            Ok(Poll::Ready(ended)) => Poll::Ready(Ok(ended)),
            Ok(Poll::Pending) => Poll::Pending,
            Err(panic) => Poll::Ready(Err(words(&*panic))),
        }
    })
    .await;
    let thrown = work.take();
    // dropping a future that panicked may panic again, and that panic is kept from the embedder, too
    drop(catch_unwind(AssertUnwindSafe(|| drop(thrown))));
    ended
}

/// What a panic says.
pub(crate) fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without words".to_owned())
}
