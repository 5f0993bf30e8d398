//! Questions about objects in QOM whose answers may be missing: every build has other properties.

use crate::qemu::{Process, ProcessError};
use qapi::qmp;
use serde_json::Value;
use std::future::Future;

/// The value of a property, if the object has it. The query is sent when this is called, before the future is awaited.
pub(super) fn property(
    process: &Process,
    path: &str,
    name: &str,
) -> impl Future<Output = Result<Option<Value>, ProcessError>> + use<> {
    known(process.ask(&qmp::qom_get { path: path.to_owned(), property: name.to_owned() }))
}

/// The answer to a query, or `None` where a build refuses it or answers in another form.
pub(super) async fn known<T>(answer: impl Future<Output = Result<T, ProcessError>>) -> Result<Option<T>, ProcessError> {
    match answer.await {
        Ok(answer) => Ok(Some(answer)),
        Err(error @ ProcessError::Answer { .. }) => {
            tracing::debug!(%error, "a fact is not known");
            Ok(None)
        }
        Err(error) if error.is_refusal() => Ok(None),
        Err(error) => Err(error),
    }
}
