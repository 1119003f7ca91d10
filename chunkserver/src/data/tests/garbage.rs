//! Connections that send anything but what they should.

use super::*;

/// A stream of good frames with whatever a seed does to it.
fn garbage(random: &SeededRandom) -> Vec<u8> {
    let cluster = ClusterId::from_bytes([1; 16]).to_string();
    let mut bytes = Vec::new();
    if random.below(8) != 0 {
        let hello = Frame::new(Head::new(Kind::Hello, 0), &pb::HelloMeta { cluster, server: 1, from: 0 });
        bytes.extend_from_slice(&hello.encode().unwrap());
    }
    let greeted = bytes.len();
    for _ in 0..random.below(4) {
        let kinds =
            [Kind::Push, Kind::Write, Kind::Append, Kind::Apply, Kind::Read, Kind::Outcome, Kind::Done];
        let kind = kinds[random.below(kinds.len() as u64) as usize];
        let mut head = Head::new(kind, random.bits64()).of_chunk(CHUNK, VERSION);
        head.offset = random.below(1 << 32) as u32;
        let payload = vec![random.bits64() as u8; random.below(100_000) as usize];
        let payload = if matches!(kind, Kind::Read) { &[] } else { &payload[..] };
        // Metadata of another message, or none at all.
        let frame = match random.below(3) {
            0 => Frame::with_payload(
                head,
                &pb::HelloMeta { cluster: "x".repeat(16), ..Default::default() },
                payload,
            ),
            1 => Frame::with_payload(
                head,
                &pb::WriteMeta { length: random.bits64() as u32, ..Default::default() },
                payload,
            ),
            _ => Frame::with_payload(head, &(), payload),
        };
        bytes.extend_from_slice(&frame.encode().unwrap());
        bytes.extend_from_slice(payload);
    }
    for _ in 0..random.below(4) {
        bytes.extend_from_slice(&random.bits64().to_le_bytes());
    }
    if random.below(2) == 0 && bytes.len() > greeted {
        let at = greeted + random.below((bytes.len() - greeted) as u64) as usize;
        bytes[at] ^= 1 << random.below(8);
    }
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_closes_its_connection_and_the_server_lives() {
    let server = server(1).await;
    let links = client();
    for seed in 0..300 {
        let bytes = garbage(&SeededRandom::new(seed));
        let mut connection = Environment::real().net.connect(&server.peer.address).await.unwrap();
        // The server may close in the middle.
        connection.write_all(&bytes).await.ok();
        drop(connection);
        if seed % 20 == 0 {
            let outcome = links.outcome(&server.peer, CHUNK, VERSION, mutation(3).request, CALL_TIMEOUT);
            assert_eq!(outcome.await.unwrap().offset, Some(3), "seed {seed}");
        }
    }
    let range = Range { handle: CHUNK, version: VERSION, offset: 1, length: 1_000_000 };
    links.read(&server.peer, &range, false, CALL_TIMEOUT).await.unwrap();
}
