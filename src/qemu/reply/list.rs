//! Lists in which QEMU names foreign things beside the engine's own.

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error, SeqAccess},
};
use serde_json::Value;
use std::{fmt, marker::PhantomData};

/// A list without the elements that could not be read.
///
/// QEMU lists foreign jobs, nodes and devices beside the engine's own. A strange one among them must not hide the rest.
#[derive(Debug, Clone)]
pub struct TolerantList<T>(pub Vec<T>);

impl<T> Default for TolerantList<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for TolerantList<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ListVisitor(PhantomData))
    }
}

struct ListVisitor<T>(PhantomData<T>);

impl<'de, T: DeserializeOwned> serde::de::Visitor<'de> for ListVisitor<T> {
    type Value = TolerantList<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = elements.next_element::<Value>()? {
            // Serde would also read an array as a struct, member by member.
            let read = match element.is_object() {
                true => T::deserialize(&element),
                false => Err(Error::custom("not an object")),
            };
            match read {
                Ok(element) => list.push(element),
                Err(error) => tracing::debug!(%error, %element, "left out of a list"),
            }
        }
        Ok(TolerantList(list))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::reply::JobInfo;

    #[test]
    fn one_strange_element_spoils_nothing() {
        let list: TolerantList<JobInfo> =
            serde_json::from_str(r#"[{"id":"a","status":"ready"},{"strange":1},7,["b","ready"]]"#).expect("decodes");
        assert_eq!(list.0.len(), 1);
    }
}
