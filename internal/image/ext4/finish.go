package ext4

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
)

// Where things lie in a file system as the writer makes it: 4 KiB blocks, the
// superblock 1 KiB into the first, descriptors of 32 bytes in the second.
const (
	blockSize     = 4096
	superOffset   = 1024
	superSize     = 1024
	groupDescSize = 32

	sbBlocks         = 0x04
	sbBlocksPerGroup = 0x20
	sbInodesPerGroup = 0x28
	sbMagic          = 0x38
	sbUUID           = 0x68
	sbLabel          = 0x78
	labelLen         = 16
	magic            = 0xEF53

	gdInodeBitmap = 4
)

// finish gives the file system its label and UUID, and sets the padding of its
// inode bitmaps, which the writer leaves clear and e2fsck complains of. It
// returns the file's size.
func finish(f *os.File, label string) (int64, error) {
	sb := make([]byte, superSize)
	if _, err := f.ReadAt(sb, superOffset); err != nil {
		return 0, fmt.Errorf("read superblock: %w", err)
	}
	u32 := func(off int) uint32 { return binary.LittleEndian.Uint32(sb[off:]) }
	if binary.LittleEndian.Uint16(sb[sbMagic:]) != magic {
		return 0, fmt.Errorf("read superblock: no ext4 magic")
	}
	blocks, perGroup, inodes := u32(sbBlocks), u32(sbBlocksPerGroup), u32(sbInodesPerGroup)
	if perGroup == 0 || inodes == 0 || inodes > blockSize*8 || inodes%8 != 0 {
		return 0, fmt.Errorf("read superblock: %d blocks and %d inodes per group", perGroup, inodes)
	}
	uuid := uuidFor(label)
	copy(sb[sbUUID:], uuid[:])
	clear(sb[sbLabel : sbLabel+labelLen])
	copy(sb[sbLabel:sbLabel+labelLen], label)
	if _, err := f.WriteAt(sb, superOffset); err != nil {
		return 0, err
	}
	groups := (blocks + perGroup - 1) / perGroup
	gds := make([]byte, groups*groupDescSize)
	if _, err := f.ReadAt(gds, blockSize); err != nil {
		return 0, fmt.Errorf("read group descriptors: %w", err)
	}
	pad := make([]byte, blockSize-inodes/8)
	for i := range pad {
		pad[i] = 0xff
	}
	for g := range groups {
		at := int64(binary.LittleEndian.Uint32(gds[g*groupDescSize+gdInodeBitmap:]))
		if _, err := f.WriteAt(pad, at*blockSize+int64(inodes/8)); err != nil {
			return 0, err
		}
	}
	size := int64(blocks) * blockSize
	return size, f.Truncate(size)
}

// uuidFor derives a version 8 UUID from a label.
func uuidFor(label string) [16]byte {
	h := sha256.Sum256([]byte("banger image " + label))
	h[6] = h[6]&0x0f | 0x80
	h[8] = h[8]&0x3f | 0x80
	return [16]byte(h[:16])
}
