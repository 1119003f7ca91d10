//! The bytes of every command, reply, key and value: what is on disks and in logs must stay readable.
//! A test that fails here means a new format number, not new bytes.

use expect_test::expect;
use gfs_proto::id::{
    ChunkHandle, ChunkIndex, ChunkVersion, ClientId, ClusterId, EntryId, LogIndex, MasterId, RequestId,
    ServerId, Uuid,
};
use gfs_proto::size::ChunkBytes;
use gfs_proto::time::UnixMs;

use super::script::path;
use crate::state::codec::{Field, decode, encode};
use crate::state::format::{self, StoredReply, system};
use crate::state::reply::{GrantRule, Limit};
use crate::state::{
    Applied, Build, Chunk, Command, Counters, Entry, EntryKind, Lease, Master, Origin, Pending, Place,
    Proposal, Rejected, Reply, Server, Session, Settings, Table, Trashed,
};

const HANDLE: ChunkHandle = ChunkHandle::from_raw(1);
const VERSION: ChunkVersion = ChunkVersion::from_raw(1);
const CLIENT: ClientId = ClientId::from_raw(6);
const REQUEST: RequestId = RequestId { client: CLIENT, sequence: 300 };
const TIME: UnixMs = UnixMs::from_raw(1_000_000);

fn servers(numbers: &[u64]) -> Vec<ServerId> {
    numbers.iter().copied().map(ServerId::from_raw).collect()
}
fn uuid(byte: u8) -> Uuid {
    Uuid::from_bytes([byte; 16])
}
fn file() -> Entry {
    Entry {
        id: EntryId::from_raw(4),
        kind: EntryKind::File {},
        place: Place::In { parent: EntryId::ROOT, name: "f".to_owned() },
        created_at: TIME,
        modified_at: TIME,
        replication: 3,
        chunk_count: 2,
    }
}

/// One command of each kind; some of them fit the state of the robustness tests.
pub(super) fn commands() -> Vec<Command> {
    vec![
        Command::Bootstrap {
            cluster: ClusterId::from_bytes([0xaa; 16]),
            chunk_bytes: ChunkBytes::DEFAULT,
            replication: 3,
            trash_ms: 1000,
            session_ms: 400,
            master: MasterId::from_raw(1),
            uuid: uuid(0xee),
            address: "m:1".to_owned(),
        },
        Command::OpenSession { nonce: [1; 16] },
        Command::RenewSession { client: CLIENT },
        Command::ExpireSessions { limit: 10 },
        Command::Mkdir { path: path("/a/c"), parents: true },
        Command::Create { path: path("/a/n"), replication: 2 },
        Command::Delete { path: path("/a"), recursive: true },
        Command::Rename { source: path("/a/f"), target: path("/n"), replace: true },
        Command::Undelete { entry: EntryId::from_raw(5), target: path("/u") },
        Command::Expedite { entry: EntryId::from_raw(5) },
        Command::CollectTrash { limit: 100 },
        Command::AddChunk {
            file: EntryId::from_raw(4),
            expected_count: 2,
            members: servers(&[1, 2]),
            primary: ServerId::from_raw(1),
        },
        Command::PrepareGrant {
            handle: HANDLE,
            expected_version: VERSION,
            members: servers(&[1, 4]),
            base: servers(&[1]),
            primary: ServerId::from_raw(1),
            writer: true,
            fresh: false,
        },
        Command::ConfirmGrant { handle: ChunkHandle::from_raw(2), version: VERSION, lease_expires_at: TIME },
        Command::ExtendLeases { leases: vec![(HANDLE, VERSION)], expires_at: TIME },
        Command::RegisterServer { uuid: uuid(9), address: "s:1".to_owned(), rack: "r".to_owned() },
        Command::RegisterMaster { uuid: uuid(8), address: "m:2".to_owned(), shadow: true },
        Command::Snapshot { source: path("/a"), target: path("/s") },
        Command::ReserveChunk {},
        Command::CopyChunk {
            file: EntryId::from_raw(4),
            index: ChunkIndex::from_raw(1),
            old: HANDLE,
            version: VERSION,
            copy: ChunkHandle::from_raw(9),
            members: servers(&[1, 2]),
        },
        Command::BeginSnapshot { source: path("/a"), target: path("/s"), request: REQUEST },
        Command::BuildSnapshot { root: EntryId::from_raw(5), limit: 100 },
        Command::AbandonSnapshot { root: EntryId::from_raw(5), handle: HANDLE },
        Command::AcceptReplica { handle: HANDLE, expected_version: VERSION, server: ServerId::from_raw(3) },
    ]
}

fn build() -> Build {
    let (original, copy) = (EntryId::from_raw(6), EntryId::from_raw(8));
    Build {
        root: EntryId::from_raw(7),
        source: EntryId::from_raw(5),
        source_path: path("/a"),
        target: path("/s"),
        request: REQUEST,
        began_at: TIME,
        original,
        copy,
        after: "n".to_owned(),
        rows: 300,
    }
}

fn applied() -> Vec<Applied> {
    vec![
        Applied::Done {},
        Applied::SessionOpened { client: CLIENT, expires_at: TIME },
        Applied::SessionRenewed { expires_at: TIME },
        Applied::SessionsExpired { count: 1, more: true },
        Applied::Entry { entry: file() },
        Applied::Deleted { entry: EntryId::from_raw(4), collect_at: TIME },
        Applied::ChunkAdded { index: ChunkIndex::from_raw(2), handle: HANDLE, added: true },
        Applied::Prepared { version: VERSION },
        Applied::Confirmed { version: VERSION },
        Applied::Extended { leases: vec![(HANDLE, VERSION)] },
        Applied::ServerRegistered { server: ServerId::from_raw(1) },
        Applied::MasterRegistered { master: MasterId::from_raw(1) },
        Applied::Collected { steps: 5, more: false },
        Applied::Reserved { handle: HANDLE },
        Applied::Built { rows: 3, more: true, unsettled: Some(HANDLE) },
    ]
}

fn rejected() -> Vec<Rejected> {
    let path = path("/a");
    let entry = EntryId::from_raw(4);
    vec![
        Rejected::NotFound { path: path.clone() },
        Rejected::NoSuchEntry { entry },
        Rejected::AlreadyExists { path: path.clone() },
        Rejected::NotADirectory { path: path.clone() },
        Rejected::IsADirectory { path: path.clone() },
        Rejected::NotEmpty { path: path.clone() },
        Rejected::Root {},
        Rejected::IntoItself { source: path.clone(), target: path },
        Rejected::NotAFile { entry },
        Rejected::NotInTrash { entry },
        Rejected::TooLarge { what: Limit::Chunks {}, size: 2, limit: 1 },
        Rejected::BadChunkCount { expected: 2, found: 1 },
        Rejected::NoSuchChunk { handle: HANDLE },
        Rejected::VersionMismatch { handle: HANDLE, asked: VERSION, here: ChunkVersion::NONE },
        Rejected::BadGrant { rule: GrantRule::Fresh {} },
        Rejected::SessionExpired { client: CLIENT },
        Rejected::AlreadyAcknowledged { request: REQUEST },
        Rejected::WindowFull { request: REQUEST, first_unacked: 1 },
        Rejected::RequestReused { request: REQUEST },
        Rejected::NotBootstrapped {},
        Rejected::AlreadyBootstrapped { cluster: ClusterId::from_bytes([0xaa; 16]) },
        Rejected::BadMasterId { master: MasterId::from_raw(1) },
        Rejected::Exhausted {},
        Rejected::Damaged {},
        Rejected::Shared { handle: HANDLE },
        Rejected::Unsettled { handle: HANDLE },
        Rejected::Held { entry },
        Rejected::NotSettled { handle: HANDLE },
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A line of golden bytes; what they decode to must be what was encoded.
fn golden<T: Field + PartialEq + std::fmt::Debug>(name: &str, value: &T) -> String {
    let bytes = encode(value);
    assert_eq!(decode::<T>(&bytes).as_ref(), Ok(value));
    format!("{name:<20} {}\n", hex(&bytes))
}

fn golden_enum<T: Field + PartialEq + std::fmt::Debug>(
    tags: &[(u8, &str)],
    samples: &[T],
    tag: impl Fn(&T) -> u8,
) -> String {
    let covered: Vec<u8> = samples.iter().map(tag).collect();
    assert_eq!(covered, tags.iter().map(|(tag, _)| *tag).collect::<Vec<_>>(), "a sample for each variant");
    tags.iter().zip(samples).map(|((_, name), sample)| golden(name, sample)).collect()
}

#[test]
fn golden_commands() {
    let told = golden_enum(Command::TAGS, &commands(), Command::tag);
    expect![[r#"
        Bootstrap            0101aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa8080802003e807900301eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee036d3a31
        OpenSession          010201010101010101010101010101010101
        RenewSession         010306
        ExpireSessions       01040a
        Mkdir                0105042f612f6301
        Create               0106042f612f6e02
        Delete               0107022f6101
        Rename               0108042f612f66022f6e01
        Undelete             010905022f75
        Expedite             010a05
        CollectTrash         010b64
        AddChunk             010c040202010201
        PrepareGrant         010d01010201040101010100
        ConfirmGrant         010e0201c0843d
        ExtendLeases         010f010101c0843d
        RegisterServer       01100909090909090909090909090909090903733a310172
        RegisterMaster       011108080808080808080808080808080808036d3a3201
        Snapshot             0112022f61022f73
        ReserveChunk         0113
        CopyChunk            01140401010109020102
        BeginSnapshot        0115022f61022f7306ac02
        BuildSnapshot        01160564
        AbandonSnapshot      01170501
        AcceptReplica        0118010103
    "#]].assert_eq(&told);
}

#[test]
fn golden_proposal() {
    let command = Command::Mkdir { path: path("/a"), parents: false };
    let proposal = Proposal { request: Some(REQUEST), first_unacked: 299, now: TIME, command };
    expect!["010106ac02ab02c0843d05022f6100"].assert_eq(&hex(&proposal.encode()));
}

#[test]
fn golden_replies() {
    let told = golden_enum(Applied::TAGS, &applied(), Applied::tag);
    expect![[r#"
        Done                 0101
        SessionOpened        010206c0843d
        SessionRenewed       0103c0843d
        SessionsExpired      01040101
        Entry                0105040102010166c0843dc0843d0302
        Deleted              010604c0843d
        ChunkAdded           0107020101
        Prepared             010801
        Confirmed            010901
        Extended             010a010101
        ServerRegistered     010b01
        MasterRegistered     010c01
        Collected            010d0500
        Reserved             010e01
        Built                010f03010101
    "#]]
    .assert_eq(&told);
}

#[test]
fn golden_refusals() {
    let told = golden_enum(Rejected::TAGS, &rejected(), Rejected::tag);
    expect![[r#"
        NotFound             0101022f61
        NoSuchEntry          010204
        AlreadyExists        0103022f61
        NotADirectory        0104022f61
        IsADirectory         0105022f61
        NotEmpty             0106022f61
        Root                 0107
        IntoItself           0108022f61022f61
        NotAFile             010904
        NotInTrash           010a04
        TooLarge             010b010201
        BadChunkCount        010c0201
        NoSuchChunk          010d01
        VersionMismatch      010e010100
        BadGrant             010f05
        SessionExpired       011006
        AlreadyAcknowledged  011106ac02
        WindowFull           011206ac0201
        RequestReused        011306ac02
        NotBootstrapped      0114
        AlreadyBootstrapped  0115aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
        BadMasterId          011601
        Exhausted            0117
        Damaged              0118
        Shared               011901
        Unsettled            011a01
        Held                 011b04
        NotSettled           011c01
    "#]]
    .assert_eq(&told);
    let all = [
        GrantRule::Members {},
        GrantRule::Base {},
        GrantRule::BaseConfirmed {},
        GrantRule::Primary {},
        GrantRule::Fresh {},
        GrantRule::Copy {},
    ];
    let mut told = golden_enum(GrantRule::TAGS, &all, GrantRule::tag);
    let all = [
        Limit::Chunks {},
        Limit::Replication {},
        Limit::Address {},
        Limit::Rack {},
        Limit::Sessions {},
        Limit::Leases {},
        Limit::Servers {},
        Limit::Snapshot {},
    ];
    told += &golden_enum(Limit::TAGS, &all, Limit::tag);
    expect![[r#"
        Members              0101
        Base                 0102
        BaseConfirmed        0103
        Primary              0104
        Fresh                0105
        Copy                 0106
        Chunks               0101
        Replication          0102
        Address              0103
        Rack                 0104
        Sessions             0105
        Leases               0106
        Servers              0107
        Snapshot             0108
    "#]]
    .assert_eq(&told);
}

fn chunk() -> Chunk {
    Chunk {
        handle: HANDLE,
        file: EntryId::from_raw(4),
        goal: 3,
        references: 1,
        version: ChunkVersion::from_raw(2),
        confirmed: VERSION,
        members: servers(&[1, 2]),
        pending: Some(Pending {
            version: ChunkVersion::from_raw(2),
            members: servers(&[1, 3]),
            base: servers(&[1]),
            primary: ServerId::from_raw(1),
            writer: true,
            fresh: false,
        }),
        lease: None,
    }
}

#[test]
fn golden_entries_and_chunks() {
    let leased = Chunk {
        confirmed: ChunkVersion::from_raw(2),
        pending: None,
        lease: Some(Lease { primary: ServerId::from_raw(1), expires_at: TIME }),
        ..chunk()
    };
    let directory = Entry {
        kind: EntryKind::Directory {},
        place: Place::Trash { collect_at: TIME },
        replication: 0,
        chunk_count: 0,
        ..file()
    };
    let root = Entry { id: EntryId::ROOT, place: Place::Root {}, ..directory.clone() };
    let trashed = Trashed {
        entry: EntryId::from_raw(4),
        path: "/a/f".to_owned(),
        deleted_at: UnixMs::from_raw(5),
        collect_at: TIME,
    };
    let told = [
        golden("file", &file()),
        golden("directory in trash", &directory),
        golden("root", &root),
        golden("chunk pending", &chunk()),
        golden("chunk leased", &leased),
        golden("trashed", &trashed),
        golden("origin", &Origin { handle: HANDLE, version: ChunkVersion::from_raw(300) }),
        golden("build", &build()),
        golden("id of a name", &EntryId::from_raw(4)),
        golden("handle of a file", &HANDLE),
    ];
    expect![[r#"
        file                 01040102010166c0843dc0843d0302
        directory in trash   01040203c0843dc0843dc0843d0000
        root                 01010201c0843dc0843d0000
        chunk pending        010104030102010201020102020103010101010000
        chunk leased         01010403010202020102000101c0843d
        trashed              0104042f612f6605c0843d
        origin               0101ac02
        build                010705022f61022f7306ac02c0843d0608016eac02
        id of a name         0104
        handle of a file     0101
    "#]]
    .assert_eq(&told.concat());
}

#[test]
fn golden_system_and_sessions() {
    let settings = Settings {
        cluster: ClusterId::from_bytes([0xaa; 16]),
        chunk_bytes: ChunkBytes::DEFAULT,
        replication: 3,
        trash_ms: 1000,
        session_ms: 400,
        created_at: TIME,
    };
    let counters = Counters {
        next_entry: EntryId::from_raw(9),
        next_chunk: ChunkHandle::from_raw(200),
        next_server: ServerId::from_raw(5),
        files: 2,
        directories: 1,
        chunks: 7,
        sessions: 3,
    };
    let (address, rack) = ("s:1".to_owned(), "r".to_owned());
    let server = Server { server: ServerId::from_raw(1), uuid: uuid(9), address, rack };
    let master =
        Master { master: MasterId::from_raw(1), uuid: uuid(8), address: "m:1".to_owned(), shadow: true };
    let session = Session { client: CLIENT, nonce: [1; 16], expires_at: TIME, first_unacked: 300 };
    let reply = Reply { decided_at: LogIndex::from_raw(7), result: Ok(Applied::Done {}) };
    let refused = Reply { decided_at: LogIndex::from_raw(7), result: Err(Rejected::Root {}) };
    let told = [
        golden("settings", &settings),
        golden("counters", &counters),
        golden("clock", &TIME),
        golden("server", &server),
        golden("master", &master),
        golden("session", &session),
        golden("stored reply", &StoredReply { command: 8, reply }),
        golden("refused", &refused),
    ];
    expect![[r#"
        settings             01aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa8080802003e8079003c0843d
        counters             0109c8010502010703
        clock                01c0843d
        server               01010909090909090909090909090909090903733a310172
        master               010108080808080808080808080808080808036d3a3101
        session              010601010101010101010101010101010101c0843dac02
        stored reply         0108070101
        refused              01070007
    "#]]
    .assert_eq(&told.concat());
}

#[test]
fn golden_keys() {
    let entry = EntryId::from_raw(0x0102);
    let client = ClientId::from_raw(0x0102);
    let keys = [
        ("settings", system::SETTINGS.to_vec()),
        ("clock", system::CLOCK.to_vec()),
        ("counters", system::COUNTERS.to_vec()),
        ("server", system::server(ServerId::from_raw(0x0102))),
        ("master", system::master(MasterId::from_raw(0x0102))),
        ("server by uuid", system::server_uuid(uuid(9))),
        ("master by uuid", system::master_uuid(uuid(9))),
        ("session by nonce", system::nonce([9; 16])),
        ("session by end", system::session_end(TIME, client)),
        ("pending grant", system::pending(HANDLE)),
        ("origin", system::origin(HANDLE)),
        ("entry", format::entry_key(entry)),
        ("name", format::name_key(entry, "é")),
        ("past names", format::names_end(entry)),
        ("file chunk", format::file_chunk_key(entry, ChunkIndex::from_raw(3))),
        ("chunk", format::chunk_key(HANDLE)),
        ("session", format::session_key(client)),
        ("reply", format::reply_key(client, 300)),
        ("trash", format::trash_key(TIME, entry)),
    ];
    let told: String = keys.iter().map(|(name, key)| format!("{name:<20} {}\n", hex(key))).collect();
    expect![[r#"
        settings             01
        clock                02
        counters             03
        server               100000000000000102
        master               110000000000000102
        server by uuid       2009090909090909090909090909090909
        master by uuid       2109090909090909090909090909090909
        session by nonce     2209090909090909090909090909090909
        session by end       2300000000000f42400000000000000102
        pending grant        240000000000000001
        origin               250000000000000001
        entry                0000000000000102
        name                 0000000000000102c3a9
        past names           0000000000000103
        file chunk           000000000000010200000003
        chunk                0000000000000001
        session              0000000000000102
        reply                0000000000000102000000000000012c
        trash                00000000000f42400000000000000102
    "#]]
    .assert_eq(&told);
    let names: Vec<_> = Table::ALL.iter().map(|table| table.name()).collect();
    expect!["system entry name file_chunk chunk session trash"].assert_eq(&names.join(" "));
}

#[test]
fn a_refusal_tells_the_client_what_to_do() {
    use gfs_proto::{Error, Retry};
    let told: String = rejected()
        .into_iter()
        .map(|rejected| {
            let error = Error::from(rejected.clone());
            assert_eq!(Error::from_wire(&error.to_wire()), error);
            assert!(error.retry() == Retry::Never || !rejected.to_string().is_empty());
            format!("{rejected}; {:?}: {error}\n", error.retry())
        })
        .collect();
    expect![[r#"
        /a: not found; Never: /a: not found
        e4: not found; Never: e4: not found
        /a: exists already; Never: /a: exists already
        /a: not a directory; Never: /a: not a directory
        /a: is a directory; Never: /a: is a directory
        /a: directory not empty (use -r to remove a tree); Never: /a: directory not empty (use -r to remove a tree)
        bad path "/": the root directory can't be used here; Never: bad path "/": the root directory can't be used here
        can't move /a to /a: the target lies inside the source; Never: can't move /a to /a: the target lies inside the source
        e4: not a file; Never: e4: is a directory
        e4: not in the trash; Never: e4 in the trash: not found
        the number of chunks of the file is too large: 2, the limit is 1; Never: the number of chunks of the file is too large: 2, the limit is 1
        the file has 1 chunks, not 2; Never: bad argument: the file has 1 chunks, not 2
        c1: no such chunk here; Refresh: c1: no such chunk here
        c1 is at v0, not v1; Refresh: c1: v1 was asked for, here is v0
        bad grant: Fresh; Never: internal error: bad grant: Fresh
        session k6 has expired: open a new one; Never: session k6 has expired: open a new one
        k6:300 was acknowledged by the client; Never: bad argument: k6:300 was acknowledged by the client
        k6:300 is too far past 1, the first unacknowledged request; Later: the session's window of requests is busy: try again later
        k6:300 was another request; Never: bad argument: k6:300 was another request
        there is no cluster yet; Later: unavailable: there is no cluster yet
        this is cluster aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa already; Never: bad argument: this is cluster aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa already
        m1 can't be a master's id; Never: bad argument: m1 can't be a master's id
        a counter has come to its end; Never: internal error: a counter has come to its end
        the state on this master can't be read; Never: internal error: the state on this master can't be read
        c1 is shared: it is copied before it is written; Later: c1: a new lease is being granted
        c1 may still be written; Later: c1: a new lease is being granted
        a snapshot of e4 is being made; Later: e4, of which a snapshot is being made, is busy: try again later
        c1 can't be revoked, so there is no snapshot; Later: c1: no live replica
    "#]].assert_eq(&told);
}
