//! What files of WASI 0.3 do in a pod, as lines on stdout.

use futures::join;
use wasip3::filesystem::preopens::get_directories;
use wasip3::filesystem::types::{
    Descriptor, DescriptorFlags, DescriptorType, DirectoryEntry, ErrorCode, OpenFlags, PathFlags,
};
use wasip3::wit_stream;

struct Files;

wasip3::cli::command::export!(Files);

const READ_WRITE: DescriptorFlags = DescriptorFlags::READ.union(DescriptorFlags::WRITE);

async fn open(dir: &Descriptor, path: &str, how: OpenFlags, flags: DescriptorFlags) -> Result<Descriptor, ErrorCode> {
    dir.open_at(PathFlags::empty(), path.to_owned(), how, flags).await
}

/// Writes at an offset, or at the end.
async fn write(file: &Descriptor, bytes: &[u8], at: Option<u64>) -> Result<(), ErrorCode> {
    let (mut sender, receiver) = wit_stream::new();
    let end = match at {
        Some(offset) => file.write_via_stream(receiver, offset),
        None => file.append_via_stream(receiver),
    };
    let bytes = bytes.to_vec();
    let (_, end) = join!(
        async move {
            sender.write_all(bytes).await;
            drop(sender);
        },
        async move { end.await }
    );
    end
}

async fn read(file: &Descriptor, offset: u64) -> (Vec<u8>, Result<(), ErrorCode>) {
    let (stream, end) = file.read_via_stream(offset);
    (stream.collect().await, end.await)
}

async fn list(dir: &Descriptor) -> (Vec<DirectoryEntry>, Result<(), ErrorCode>) {
    let (stream, end) = dir.read_directory();
    (stream.collect().await, end.await)
}

async fn bytes(dir: &Descriptor) {
    let file = open(dir, "file", OpenFlags::CREATE, READ_WRITE).await.unwrap();
    println!("wrote 200000: {:?}", write(&file, &vec![1; 200_000], Some(0)).await);
    println!("appended: {:?}", write(&file, b"end", None).await);
    let (read_back, end) = read(&file, 0).await;
    println!("read {}, end: {:?}, {end:?}", read_back.len(), &read_back[199_999..]);
    let stat = file.stat().await.unwrap();
    println!("size {}, regular: {}", stat.size, matches!(stat.type_, DescriptorType::RegularFile));
    let (from, end) = read(&file, 200_000).await;
    println!("from a place on: {from:?}, {end:?}");
    let (nothing, end) = read(dir, 0).await;
    println!("a directory read: {}, {end:?}", nothing.len());
    let read_only = open(dir, "file", OpenFlags::empty(), DescriptorFlags::READ).await.unwrap();
    println!("written where it is read only: {:?}", write(&read_only, b"x", Some(0)).await);
}

async fn names(dir: &Descriptor) {
    dir.create_directory_at("many".to_owned()).await.unwrap();
    let many = open(dir, "many", OpenFlags::DIRECTORY, DescriptorFlags::READ).await.unwrap();
    for index in 0..200 {
        open(&many, &format!("{index:03}"), OpenFlags::CREATE, READ_WRITE).await.unwrap();
    }
    let (mut entries, end) = list(&many).await;
    entries.sort_by(|one, other| one.name.cmp(&other.name));
    println!("{} entries, first {}, {end:?}", entries.len(), entries[0].name);
    let file = open(&many, "000", OpenFlags::empty(), DescriptorFlags::READ).await.unwrap();
    let (entries, end) = list(&file).await;
    println!("entries of a file: {}, {end:?}", entries.len());
    let missing = open(dir, "nothing", OpenFlags::empty(), DescriptorFlags::READ).await;
    println!("not there: {:?}", missing.map(drop));
    println!("renamed: {:?}", dir.rename_at("file".to_owned(), &many, "moved".to_owned()).await);
    println!("removed: {:?}", many.unlink_file_at("moved".to_owned()).await);
    let outside = open(dir, "../cache", OpenFlags::DIRECTORY, DescriptorFlags::READ).await;
    println!("out of the directory: {:?}", outside.map(drop));
}

impl wasip3::exports::cli::run::Guest for Files {
    async fn run() -> Result<(), ()> {
        let (dir, path) = get_directories().remove(0);
        println!("mounted at {path}");
        bytes(&dir).await;
        names(&dir).await;
        Ok(())
    }
}
