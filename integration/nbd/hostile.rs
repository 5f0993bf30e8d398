//! Servers that break the protocol in every possible way, stop, or die. Time is paused wherever a deadline is involved.

use std::time::Duration;

use qferry::internals::nbd::{AllocationExtent, DepthExtent, MetaContexts, NbdClient, NbdError, NbdOptions};
use tokio::task::JoinSet;

use crate::server::{
    DATA, DONE, ERROR, HOLE, NONE, STATUS, Server, Shape, be, chunk, context, data, error, hole, option_reply, simple,
    status,
};

/// Connects a client with a server and runs the handshake.
async fn connect(shape: Shape) -> (NbdClient, Server) {
    let (mut server, stream) = Server::new();
    let serving = async {
        server.run_handshake(&shape).await;
        server
    };
    let (client, server) = tokio::join!(NbdClient::connect(stream, "disk", NbdOptions::default()), serving);
    (client.unwrap(), server)
}

/// Reads 10 bytes at 100 from a server that sends `answer`.
async fn read_from(shape: Shape, answer: impl FnOnce(u64) -> Vec<u8>) -> Result<Vec<u8>, NbdError> {
    let (client, mut server) = connect(shape).await;
    let serving = async {
        let request = server.read_request().await.unwrap();
        assert_eq!((request.command, request.offset, request.length), (0, 100, 10));
        server.send(&answer(request.cookie)).await;
        server
    };
    let (read, _server) = tokio::join!(client.read(100, 10), serving);
    read.map(|bytes| bytes.to_vec())
}

/// Queries the extents of 100 bytes at 0 from a server that answers with block status chunks of these payloads.
async fn query_from(payloads: &[Vec<u8>]) -> Result<Vec<AllocationExtent>, NbdError> {
    let (client, mut server) = connect(Shape::default()).await;
    let serving = async {
        let request = server.read_request().await.unwrap();
        assert_eq!((request.command, request.offset, request.length), (7, 0, 100));
        for payload in payloads {
            server.send_chunk(0, STATUS, request.cookie, payload).await;
        }
        server.send_chunk(DONE, NONE, request.cookie, &[]).await;
        server
    };
    tokio::join!(client.query_extents(0, 100), serving).0
}

#[tokio::test]
async fn a_read_comes_in_chunks_of_any_order() {
    let read = read_from(Shape::default(), |cookie| {
        let chunks = [
            chunk(0, DATA, cookie, &data(107, b"hij")),
            chunk(0, HOLE, cookie, &hole(102, 5)),
            chunk(DONE, DATA, cookie, &data(100, b"ab")),
        ];
        chunks.concat()
    });
    assert_eq!(read.await.unwrap(), b"ab\0\0\0\0\0hij");
    let read = read_from(Shape { structured: false, ..Shape::default() }, |cookie| simple(0, cookie, b"abcdefghij"));
    assert_eq!(read.await.unwrap(), b"abcdefghij");
}

#[tokio::test]
async fn replies_that_cannot_be_right_are_refused() {
    type Case = (&'static str, bool, fn(u64) -> Vec<u8>, fn(&NbdError) -> bool);
    let cases: [Case; 23] = [
        (
            "magic",
            true,
            |_| be(&[(0xdead_beef, 4), (0, 8), (0, 8)]),
            |e| matches!(e, NbdError::Magic { magic: 0xdead_beef }),
        ),
        (
            "cookie",
            true,
            |c| chunk(DONE, DATA, c + 7, &data(100, &[0; 10])),
            |e| matches!(e, NbdError::UnknownCookie { .. }),
        ),
        (
            "answered twice",
            true,
            |c| [chunk(DONE, ERROR, c + 1, &error(5, "no")), chunk(DONE, NONE, c, &[])].concat(),
            |e| matches!(e, NbdError::UnknownCookie { .. }),
        ),
        ("before", true, |c| chunk(DONE, DATA, c, &data(99, &[0; 10])), |e| matches!(e, NbdError::Outside { .. })),
        ("behind", true, |c| chunk(DONE, DATA, c, &data(101, &[0; 10])), |e| matches!(e, NbdError::Outside { .. })),
        ("too much", true, |c| chunk(DONE, DATA, c, &data(100, &[0; 11])), |e| matches!(e, NbdError::Outside { .. })),
        (
            "huge",
            true,
            |c| be(&[(0x668e_33ef, 4), (1, 2), (1, 2), (c, 8), (0xffff_ffff, 4), (100, 8)]),
            |e| matches!(e, NbdError::Outside { .. }),
        ),
        ("huge hole", true, |c| chunk(DONE, HOLE, c, &hole(100, u32::MAX)), |e| matches!(e, NbdError::Outside { .. })),
        ("no hole", true, |c| chunk(DONE, HOLE, c, &hole(100, 0)), |e| matches!(e, NbdError::Unexpected { .. })),
        ("no data", true, |c| chunk(DONE, DATA, c, &data(100, &[])), |e| matches!(e, NbdError::Unexpected { .. })),
        (
            "overlap",
            true,
            |c| [chunk(0, DATA, c, &data(100, &[0; 6])), chunk(DONE, HOLE, c, &hole(105, 5))].concat(),
            |e| matches!(e, NbdError::Overlap { offset: 105 }),
        ),
        (
            "missing",
            true,
            |c| [chunk(0, DATA, c, &data(101, &[0; 9])), chunk(DONE, NONE, c, &[])].concat(),
            |e| matches!(e, NbdError::Missing { offset: 100, length: 10 }),
        ),
        ("nothing", true, |c| chunk(DONE, NONE, c, &[]), |e| matches!(e, NbdError::Missing { .. })),
        ("not the last", true, |c| chunk(0, NONE, c, &[]), |e| matches!(e, NbdError::Unexpected { .. })),
        ("nothing, long", true, |c| chunk(DONE, NONE, c, &[0; 9]), |e| matches!(e, NbdError::TooLong { .. })),
        ("unknown kind", true, |c| chunk(DONE, 77, c, &[0; 9]), |e| matches!(e, NbdError::Unexpected { .. })),
        (
            "status to a read",
            true,
            |c| chunk(DONE, STATUS, c, &status(7, &[(10, 0)])),
            |e| matches!(e, NbdError::Unexpected { .. }),
        ),
        (
            "endless status",
            true,
            |c| be(&[(0x668e_33ef, 4), (1, 2), (5, 2), (c, 8), (0xffff_fffc, 4)]),
            |e| matches!(e, NbdError::TooLong { .. }),
        ),
        (
            "endless message",
            true,
            |c| be(&[(0x668e_33ef, 4), (1, 2), (0x8001, 2), (c, 8), (1 << 20, 4)]),
            |e| matches!(e, NbdError::TooLong { .. }),
        ),
        (
            "cut message",
            true,
            |c| chunk(DONE, ERROR, c, &be(&[(5, 4), (99, 2)])),
            |e| matches!(e, NbdError::Unexpected { .. }),
        ),
        ("simple, though structured", true, |c| simple(0, c, &[0; 10]), |e| matches!(e, NbdError::Unexpected { .. })),
        (
            "structured, though simple",
            false,
            |c| chunk(DONE, DATA, c, &data(100, &[0; 10])),
            |e| matches!(e, NbdError::Unexpected { .. }),
        ),
        ("simple, unknown cookie", false, |c| simple(5, c + 1, &[]), |e| matches!(e, NbdError::UnknownCookie { .. })),
    ];
    for (name, structured, answer, expected) in cases {
        let result = read_from(Shape { structured, ..Shape::default() }, answer).await;
        let error = result.expect_err(name);
        assert!(expected(&error), "{name}: {error:?}");
        assert!(!error.to_string().contains('\n'), "{name}: {error}");
    }
}

#[tokio::test]
async fn block_status_that_cannot_be_right_is_refused() {
    let payloads = [status(8, &[(100, 5)]), status(7, &[(40, 0), (20, 3), (7, 3), (500, 2)])];
    let extent = |start, length, zero, hole| AllocationExtent { start, length, zero, hole };
    assert_eq!(
        query_from(&payloads).await.unwrap(),
        [extent(0, 40, false, false), extent(40, 27, true, true), extent(67, 33, true, false)]
    );
    let empty = query_from(&[status(7, &[(40, 0), (0, 3)])]).await.unwrap_err();
    assert!(matches!(empty, NbdError::EmptyExtent), "{empty:?}");
    let long = query_from(&[status(7, &[(100, 0), (1, 3)])]).await.unwrap_err();
    assert!(matches!(long, NbdError::TooLong { .. }), "{long:?}");
    for wrong in [
        vec![],
        vec![status(8, &[(100, 0)])],
        vec![status(7, &[])],
        vec![status(7, &[(100, 0)]), status(7, &[(100, 0)])],
        vec![be(&[(7, 4), (100, 4)])],
        vec![vec![]],
    ] {
        let error = query_from(&wrong).await.unwrap_err();
        assert!(matches!(error, NbdError::Unexpected { .. }), "{wrong:?}: {error:?}");
    }
    let (client, mut server) = connect(Shape::default()).await;
    let serving = async {
        let request = server.read_request().await.unwrap();
        server.send_chunk(DONE, HOLE, request.cookie, &hole(0, 100)).await;
    };
    let (error, ()) = tokio::join!(client.query_extents(0, 100), serving);
    assert!(matches!(error, Err(NbdError::Unexpected { .. })), "{error:?}");
}

#[tokio::test]
async fn short_answers_and_long_ranges_take_several_requests() {
    let size = 10 << 30;
    let (client, mut server) = connect(Shape { size, ..Shape::default() }).await;
    let serving = tokio::spawn(async move {
        let mut asked = 0;
        while let Some(request) = server.read_request().await {
            if request.command == 2 {
                return asked;
            }
            asked += 1;
            let length = request.length.min(3 << 29);
            let (start, end) = (request.offset, request.offset + u64::from(length));
            let flags = u32::from(start >= 3 << 30);
            assert!(end <= size);
            server.send_chunk(0, STATUS, request.cookie, &status(8, &[(length, 1)])).await;
            server.send_chunk(DONE, STATUS, request.cookie, &status(7, &[(length, flags)])).await;
        }
        panic!("the client sent no disconnect");
    });
    let extent = |start, length, hole| AllocationExtent { start, length, zero: false, hole };
    assert_eq!(
        client.query_extents(0, size).await.unwrap(),
        [extent(0, 3 << 30, false), extent(3 << 30, 7 << 30, true)]
    );
    assert_eq!(client.query_depths(5, size - 5).await.unwrap(), [DepthExtent { start: 5, length: size - 5, depth: 1 }]);
    assert_eq!(client.query_extents(size, 0).await.unwrap(), []);
    drop(client);
    assert_eq!(serving.await.unwrap(), 7 + 7);
}

#[tokio::test]
async fn an_error_fails_its_request_alone() {
    for structured in [true, false] {
        let (client, mut server) = connect(Shape { structured, ..Shape::default() }).await;
        let serving = async {
            let first = server.read_request().await.unwrap();
            let second = server.read_request().await.unwrap();
            if structured {
                server.send_chunk(0, DATA, first.cookie, &data(0, b"ab")).await;
                server.send_chunk(DONE, DATA, second.cookie, &data(8, b"wxyz")).await;
                server.send_chunk(0, ERROR, first.cookie, &error(5, "bad\x1b sector")).await;
                server.send_chunk(0, ERROR + 1, first.cookie, &[error(12, ""), be(&[(2, 8)])].concat()).await;
                server.send_chunk(DONE, NONE, first.cookie, &[]).await;
            } else {
                server.send_simple(0, second.cookie, b"wxyz").await;
                server.send_simple(5, first.cookie, &[]).await;
            }
        };
        let (first, second, ()) = tokio::join!(client.read(0, 4), client.read(8, 4), serving);
        assert!(matches!(first, Err(NbdError::Server { code: 5, .. })), "{first:?}");
        let said = if structured { "the server failed the request with EIO: bad sector" } else { "" };
        assert!(first.unwrap_err().to_string().contains(said));
        assert_eq!(second.unwrap(), &b"wxyz"[..]);
    }
}

#[tokio::test]
async fn impossible_requests_are_refused_without_asking_the_server() {
    let (client, _server) = connect(Shape { size: 1 << 40, contexts: vec![], ..Shape::default() }).await;
    assert!(client.is_read_only());
    for (offset, length) in [(1 << 40, 1), ((1 << 40) - 1, 2), (u64::MAX, 2)] {
        assert!(matches!(client.read(offset, length).await, Err(NbdError::OutOfRange { .. })));
    }
    assert!(matches!(client.read(0, (32 << 20) + 1).await, Err(NbdError::ReadTooLong { .. })));
    assert!(client.read(1 << 40, 0).await.unwrap().is_empty());
    assert!(matches!(client.query_extents(0, 1).await, Err(NbdError::NotOffered { context: "base:allocation" })));
    assert!(matches!(client.query_depths(0, 1).await, Err(NbdError::NotOffered { context: "qemu:allocation-depth" })));
    let (_server, stream) = Server::new();
    let error = NbdClient::connect(stream, &"x".repeat(4097), NbdOptions::default()).await.unwrap_err();
    assert!(matches!(error, NbdError::NameTooLong { length: 4097 }), "{error:?}");
}

#[tokio::test]
async fn contexts_are_asked_for_as_wanted() {
    for contexts in [MetaContexts { allocation: true, depth: false }, MetaContexts { allocation: false, depth: false }]
    {
        let (mut server, stream) = Server::new();
        let options = NbdOptions { contexts, ..NbdOptions::default() };
        let serving = async {
            let shape = Shape { contexts: vec![(7, "base:allocation")], ..Shape::default() };
            let queries = server.run_handshake(&shape).await;
            (queries, server)
        };
        let (client, (queries, _server)) = tokio::join!(NbdClient::connect(stream, "disk", options), serving);
        assert!(client.is_ok(), "{client:?}");
        assert_eq!(queries, contexts.allocation.then(|| context("disk", &["base:allocation"])));
    }
}

#[tokio::test]
async fn peers_that_do_not_greet_as_nbd_servers_are_refused() {
    type Case = (Vec<u8>, fn(&NbdError) -> bool);
    let cases: [Case; 5] = [
        (b"HTTP/1.1 400 Bad Request\r\n".to_vec(), |e| matches!(e, NbdError::NotNbd { .. })),
        (b"NBDMAGICnonsense\0\x03".to_vec(), |e| matches!(e, NbdError::NotNbd { .. })),
        (be(&[(0x4e42_444d_4147_4943, 8), (0x4202_8186_1253, 8), (0, 8)]), |e| matches!(e, NbdError::TooOld)),
        (b"NBDMAGICIHAVEOPT\0\0".to_vec(), |e| matches!(e, NbdError::TooOld)),
        (b"NBDMAGIC".to_vec(), |e| matches!(e, NbdError::Ended)),
    ];
    for (greeting, expected) in cases {
        let (mut server, stream) = Server::new();
        server.send(&greeting).await;
        drop(server);
        let error = NbdClient::connect(stream, "disk", NbdOptions::default()).await.unwrap_err();
        assert!(expected(&error), "{greeting:?}: {error:?}");
    }
}

#[tokio::test]
async fn handshakes_that_break_the_protocol_are_refused() {
    type Case = (&'static str, u32, Vec<u8>, fn(&NbdError) -> bool);
    let reply = option_reply;
    let unknown = |e: &NbdError| matches!(e, NbdError::NoSuchExport { .. });
    let nonsense = |e: &NbdError| matches!(e, NbdError::Handshake { .. });
    let info = |flags: u64| be(&[(0, 2), (4096, 8), (flags, 2)]);
    let named = |id: u64, name: &str| [be(&[(id, 4)]), name.as_bytes().to_vec()].concat();
    let cases: [Case; 18] = [
        ("magic", 8, be(&[(1, 8), (8, 4), (1, 4), (0, 4)]), nonsense),
        ("another option", 8, reply(7, 1, &[]), nonsense),
        ("unknown kind", 8, reply(8, 99, &[]), nonsense),
        ("info on structured", 8, reply(8, 3, &[]), nonsense),
        ("long", 8, be(&[(0x3_e889_0455_65a9, 8), (8, 4), (1, 4), (1 << 30, 4)]), |e| {
            matches!(e, NbdError::TooLong { .. })
        }),
        ("context: no such export", 10, reply(10, (1 << 31) + 6, b"who?"), unknown),
        ("context not asked for", 10, reply(10, 4, &named(1, "qemu:dirty-bitmap:x")), nonsense),
        ("context twice", 10, reply(10, 4, &named(1, "base:allocation")).repeat(2), nonsense),
        (
            "contexts of one id",
            10,
            [
                reply(10, 4, &named(1, "base:allocation")),
                reply(10, 4, &named(1, "qemu:allocation-depth")),
                reply(10, 1, &[]),
            ]
            .concat(),
            nonsense,
        ),
        ("context: cut", 10, reply(10, 4, &[0]), |e| matches!(e, NbdError::Unexpected { .. })),
        ("context: info", 10, reply(10, 3, &[0, 0]), nonsense),
        ("go: no such export", 7, reply(7, (1 << 31) + 6, b"who?"), unknown),
        ("go: refused", 7, reply(7, (1 << 31) + 5, b"secrets only"), |e| {
            matches!(e, NbdError::Declined { option: "NBD_OPT_GO", .. }) && e.to_string().contains("TLS_REQD: secrets")
        }),
        ("go: no size", 7, reply(7, 1, &[]), nonsense),
        ("go: no flags", 7, reply(7, 3, &info(0)), nonsense),
        ("go: cut", 7, reply(7, 3, &be(&[(0, 2), (4096, 8)])), |e| matches!(e, NbdError::Unexpected { .. })),
        ("go: context", 7, reply(7, 4, &named(1, "base:allocation")), nonsense),
        ("go: without end", 7, reply(7, 3, &be(&[(1, 2)])).repeat(40), nonsense),
    ];
    for (name, at, answer, expected) in cases {
        let (mut server, stream) = Server::new();
        let serving = async {
            server.send_greeting(3).await;
            let shape = Shape::default();
            loop {
                let (option, payload) = server.read_option().await;
                if option == at {
                    server.send(&answer).await;
                    return server;
                }
                server.answer(&shape, option, &payload).await;
            }
        };
        let (client, _server) = tokio::join!(NbdClient::connect(stream, "disk", NbdOptions::default()), serving);
        let error = client.expect_err(name);
        assert!(expected(&error), "{name}: {error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_wait_has_a_deadline() {
    // The server falls silent before one step of the handshake.
    for steps in 0..4 {
        let (mut server, stream) = Server::new();
        let serving = async {
            if steps > 0 {
                server.send_greeting(3).await;
            }
            for _ in 1..steps {
                let (option, payload) = server.read_option().await;
                server.answer(&Shape::default(), option, &payload).await;
            }
            server
        };
        let (client, _server) = tokio::join!(NbdClient::connect(stream, "disk", NbdOptions::default()), serving);
        let error = client.unwrap_err();
        assert!(matches!(error, NbdError::TimedOut { .. }), "{steps}: {error:?}");
    }
    // The server never answers a request, or answers with a byte a second.
    for trickle in [false, true] {
        let (client, mut server) = connect(Shape::default()).await;
        let serving = tokio::spawn(async move {
            let request = server.read_request().await.unwrap();
            let answer = chunk(DONE, DATA, request.cookie, &data(0, &[1; 100]));
            for byte in answer.into_iter().take(if trickle { usize::MAX } else { 0 }) {
                if !server.try_send(&[byte]).await {
                    return;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            while server.read_request().await.is_some() {}
        });
        let before = tokio::time::Instant::now();
        let error = client.read(0, 100).await.unwrap_err();
        assert!(matches!(error, NbdError::TimedOut { .. }), "{error:?}");
        assert_eq!(before.elapsed().as_secs(), 30);
        let after = client.read(0, 100).await.unwrap_err();
        assert!(matches!(after, NbdError::TimedOut { .. }), "{after:?}");
        // The task has ended, although the handle still lives: the server sees the end of the stream.
        serving.await.unwrap();
        drop(client);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_caller_left_is_given_up_too() {
    let (client, mut server) = connect(Shape::default()).await;
    assert!(tokio::time::timeout(Duration::from_secs(1), client.read(0, 100)).await.is_err());
    assert!(server.read_request().await.is_some());
    assert!(server.read_request().await.is_none(), "the connection was to be given up");
    assert!(matches!(client.read(0, 1).await, Err(NbdError::TimedOut { .. })));
}

#[tokio::test]
async fn all_waiters_fail_with_the_error_that_ended_the_connection() {
    let (client, mut server) = connect(Shape::default()).await;
    let mut reads = JoinSet::new();
    for at in 0..20 {
        let client = client.clone();
        reads.spawn(async move { client.read(at, 10).await.unwrap_err() });
    }
    for _ in 0..20 {
        server.read_request().await.unwrap();
    }
    server.send(&be(&[(0xdead_beef, 4)])).await;
    for error in reads.join_all().await {
        assert!(matches!(error, NbdError::Magic { .. }), "{error:?}");
    }
    assert!(matches!(client.read(0, 1).await, Err(NbdError::Magic { .. })));
}

#[tokio::test]
async fn closing_sends_a_disconnect() {
    let (client, mut server) = connect(Shape::default()).await;
    let other = client.clone();
    let reading = tokio::spawn(async move { (other.read(0, 10).await.unwrap_err(), other) });
    assert_eq!(server.read_request().await.unwrap().command, 0);
    client.close().await;
    assert_eq!(server.read_request().await.unwrap().command, 2);
    assert!(server.read_request().await.is_none());
    let (error, other) = reading.await.unwrap();
    assert!(matches!(error, NbdError::Closed), "{error:?}");
    assert!(matches!(other.read(0, 1).await, Err(NbdError::Closed)));
}
