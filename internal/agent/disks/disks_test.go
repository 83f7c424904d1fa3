package disks_test

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/banger-dev/banger/internal/agent/disks"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestScanFindsDisksBySerialNotByOrder(t *testing.T) {
	sysfs := t.TempDir()
	write(t, filepath.Join(sysfs, "block/vda/serial"), "work")
	write(t, filepath.Join(sysfs, "block/vdb/serial"), "image\n")
	write(t, filepath.Join(sysfs, "block/vdc/serial"), "work") // a second claim
	write(t, filepath.Join(sysfs, "block/vdd/serial"), "")
	write(t, filepath.Join(sysfs, "block/sda/serial"), "system")
	write(t, filepath.Join(sysfs, "block/vdb/size"), "2048\n")

	found, err := disks.Scan(sysfs)
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 2 || found.Device(disks.Work) != "/dev/vda" || found.Device(disks.Image) != "/dev/vdb" {
		t.Errorf("found %v", found)
	}
	if found.Device(disks.System) != "" {
		t.Error("a disk that is not virtio was taken")
	}
	if size, err := disks.Size(sysfs, "vdb"); err != nil || size != 1<<20 {
		t.Errorf("size %d, %v", size, err)
	}
}

func superblock() []byte {
	b := make([]byte, 1024)
	binary.LittleEndian.PutUint32(b[0x04:], 262144)
	binary.LittleEndian.PutUint32(b[0x18:], 2)
	binary.LittleEndian.PutUint16(b[0x38:], 0xEF53)
	binary.LittleEndian.PutUint32(b[0x60:], 0x80)
	binary.LittleEndian.PutUint32(b[0x150:], 1)
	return b
}

func TestParseSuperblock(t *testing.T) {
	g, err := disks.ParseSuperblock(superblock())
	if err != nil || g.BlockSize != 4096 || g.Blocks != 1<<32+262144 {
		t.Errorf("%+v, %v", g, err)
	}
	b := superblock()
	binary.LittleEndian.PutUint32(b[0x60:], 0) // without 64bit the upper half is something else
	if g, err := disks.ParseSuperblock(b); err != nil || g.Blocks != 262144 {
		t.Errorf("%+v, %v", g, err)
	}
	for _, bad := range [][]byte{nil, make([]byte, 1024), superblock()[:1000]} {
		if _, err := disks.ParseSuperblock(bad); !errors.Is(err, disks.ErrNotExt4) {
			t.Errorf("%d bytes: %v", len(bad), err)
		}
	}
}

func FuzzSuperblock(f *testing.F) {
	f.Add(superblock())
	f.Fuzz(func(t *testing.T, b []byte) {
		if g, err := disks.ParseSuperblock(b); err == nil && (g.BlockSize < 1024 || g.BlockSize > 65536) {
			t.Errorf("block size %d", g.BlockSize)
		}
	})
}
