//! The nodes of the block graph that are a mirror's alone.
//!
//! Pure. A guest's disk can have a connection of the same kind as the target of a mirror, and two mirrors have one
//! each: what is cut or looked at for the sake of one mirror must be told from all others.

use crate::qemu::reply::BlockGraph;
use std::collections::{BTreeMap, BTreeSet};

/// The names of the nodes that the mirror `job` writes through, and that nothing else uses; empty where the graph does
/// not tell. The job's edge to its target is told by QEMU 7.2 to 11.1.
pub(super) fn of_mirror_alone(graph: &BlockGraph, job: &str) -> BTreeSet<String> {
    let of_kind = |kind: &str| -> BTreeMap<u64, &str> {
        graph.nodes.iter().filter(|node| node.kind == kind).map(|node| (node.id, node.name.as_str())).collect()
    };
    let (nodes, jobs, backends) = (of_kind("block-driver"), of_kind("block-job"), of_kind("block-backend"));
    let is_target = |parent: u64, name: &str| name == "target" && jobs.get(&parent) == Some(&job);
    let targets: BTreeSet<u64> =
        graph.edges.iter().filter(|edge| is_target(edge.parent, &edge.name)).map(|edge| edge.child).collect();
    let below_targets = below(graph, targets.iter().copied());
    // a mirror writes through a user of its target that has no name, and one alone
    let mut own_user = graph
        .edges
        .iter()
        .filter(|edge| targets.contains(&edge.child) && backends.get(&edge.parent).is_some_and(|name| name.is_empty()));
    let own_user = own_user.next().map(|edge| edge.parent);
    let others = graph.edges.iter().filter(|edge| {
        !is_target(edge.parent, &edge.name) && own_user != Some(edge.parent) && !below_targets.contains(&edge.parent)
    });
    let shared = below(graph, others.map(|edge| edge.child));
    let own = below_targets.difference(&shared).filter_map(|id| nodes.get(id));
    own.map(|name| (*name).to_owned()).collect()
}

/// These vertices and all that they use.
fn below(graph: &BlockGraph, of: impl Iterator<Item = u64>) -> BTreeSet<u64> {
    let mut children: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for edge in &graph.edges {
        children.entry(edge.parent).or_default().push(edge.child);
    }
    let (mut found, mut next) = (BTreeSet::new(), of.collect::<Vec<u64>>());
    while let Some(vertex) = next.pop() {
        if found.insert(vertex) {
            next.extend(children.get(&vertex).into_iter().flatten());
        }
    }
    found
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// The answer of QEMU 10.0.13 about a guest with two disks, of which one is an NBD server's, and a mirror of the
    /// other to an NBD server.
    pub(in crate::diagnosis) fn recorded() -> Value {
        let edge = |name: &str, parent: u64, child: u64| json!({ "name": name, "parent": parent, "child": child });
        let vertex = |name: &str, kind: &str, id: u64| json!({ "name": name, "type": kind, "id": id });
        json!({
            "edges": [edge("backing", 2, 8), edge("file", 6, 11), edge("file", 4, 10), edge("file", 8, 9),
                edge("main node", 7, 2), edge("source", 7, 8), edge("target", 7, 6), edge("root", 5, 6),
                edge("root", 3, 4), edge("root", 1, 2)],
            "nodes": [vertex("#block637", "block-driver", 2), vertex("#block558", "block-driver", 6),
                vertex("#block466", "block-driver", 11), vertex("#block393", "block-driver", 4),
                vertex("#block209", "block-driver", 10), vertex("#block189", "block-driver", 8),
                vertex("#block094", "block-driver", 9), vertex("m", "block-job", 7), vertex("", "block-backend", 5),
                vertex("d1", "block-backend", 3), vertex("d0", "block-backend", 1)],
        })
    }

    fn own(answer: &Value) -> Vec<String> {
        let graph: BlockGraph = serde_json::from_value(answer.clone()).expect("a graph");
        of_mirror_alone(&graph, "m").into_iter().collect()
    }

    fn with_edge(name: &str, parent: u64, child: u64) -> Value {
        let mut answer = recorded();
        answer["edges"].as_array_mut().expect("a list").push(json!({ "name": name, "parent": parent, "child": child }));
        answer
    }

    #[test]
    fn a_mirror_has_its_target_and_what_nothing_else_uses() {
        assert_eq!(own(&recorded()), ["#block466", "#block558"]);
        // a disk of the guest's that reads through the same connection
        assert_eq!(own(&with_edge("backing", 4, 11)), ["#block558"]);
        // another user of the target itself
        let mut exported = with_edge("root", 12, 6);
        let export = json!({ "name": "", "type": "block-backend", "id": 12 });
        exported["nodes"].as_array_mut().expect("a list").push(export);
        assert!(own(&exported).is_empty());
        // a graph that goes round, and one that does not name the job
        assert_eq!(own(&with_edge("file", 11, 6)), ["#block466", "#block558"]);
        let strangers: BlockGraph = serde_json::from_value(recorded()).expect("a graph");
        assert!(of_mirror_alone(&strangers, "other").is_empty());
        assert!(own(&json!({ "nodes": [], "edges": [] })).is_empty());
    }
}
