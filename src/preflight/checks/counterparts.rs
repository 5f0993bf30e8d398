//! The counterparts of one machine's devices among those of another.
//!
//! Pure.

/// Whether the second device is the first one's counterpart.
pub(super) type CounterpartRule<'a, T> = &'a dyn Fn(&T, &T) -> bool;

/// The devices of two machines.
#[derive(Debug)]
pub(super) struct Counterparts<'a, T> {
    /// Each device of the source with its counterpart.
    pub(super) pairs: Vec<(&'a T, &'a T)>,
    /// The devices of the source that have none.
    pub(super) missing: Vec<&'a T>,
    /// The devices of the destination that are nobody's.
    pub(super) extra: Vec<&'a T>,
}

/// Pairs devices: the first rule that finds a counterpart for a device counts, and no counterpart is another device's.
pub(super) fn pair_up<'a, T>(
    source: &'a [T],
    destination: &'a [T],
    rules: [CounterpartRule<'_, T>; 3],
) -> Counterparts<'a, T> {
    let (mut missing, mut extra): (Vec<_>, Vec<_>) = (source.iter().collect(), destination.iter().collect());
    let mut pairs = Vec::new();
    for is_counterpart in rules {
        missing.retain(|device: &&T| {
            let found = extra.iter().position(|other| is_counterpart(device, other));
            found.map(|found| pairs.push((*device, extra.remove(found)))).is_none()
        });
    }
    Counterparts { pairs, missing, extra }
}
