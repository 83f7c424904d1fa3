//go:build e2e

package image_test

import (
	"archive/tar"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/banger-dev/banger/internal/disk"
	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/image"
	"github.com/banger-dev/banger/internal/image/ext4"
	"github.com/banger-dev/banger/internal/op"
)

// envInside tells the test's own binary that it runs where it may mount.
const envInside = "BANGER_TEST_FULL_DISK"

// TestFullDisk fills a small file system for real: it runs itself again in a
// mount namespace of its own, with a tmpfs of 8 MB.
func TestFullDisk(t *testing.T) {
	if dir := os.Getenv(envInside); dir != "" {
		fullDisk(t, dir)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestFullDisk$", "-test.v")
	cmd.Env = append(os.Environ(), envInside+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func fullDisk(t *testing.T, dir string) {
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=8m,mode=700"); err != nil {
		t.Fatal(err)
	}
	store, err := image.Open(filepath.Join(dir, "images"), big{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = store.Ensure(t.Context(), "big", nil)
	full(t, err)
	err = (&disk.Maker{Cache: filepath.Join(dir, "cache")}).Make(t.Context(), filepath.Join(dir, "d"), 64<<30, "x")
	full(t, err)
	var left []string
	err = filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() && !strings.HasSuffix(p, ".lock") && !strings.Contains(p, "/cache/blank-") { // a whole blank disk may stay
			left = append(left, p)
		}
		return err
	})
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	// there is space again: nothing needs mending first
	if _, err := store.Ensure(t.Context(), "small", nil); err != nil {
		t.Error(err)
	}
}

func full(t *testing.T, err error) {
	t.Helper()
	if errs.CodeOf(err) != "disk_full" || errs.KindOf(err) != errs.Exhausted || errs.HintOf(err) == "" {
		t.Errorf("%v (%s), hint %q", err, errs.CodeOf(err), errs.HintOf(err))
	}
}

// big makes images of one file: 32 MB, or 1 KB.
type big struct{}

func (big) Entries() ([]image.Entry, error) {
	return []image.Entry{{Name: "big"}, {Name: "small"}}, nil
}

func (big) Make(ctx context.Context, name, dst, _ string, _ op.Reporter) (image.Manifest, error) {
	size := int64(1 << 10)
	if name == "big" {
		size = 32 << 20
	}
	pr, pw := io.Pipe()
	go func() {
		w := tar.NewWriter(pw)
		err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "f", Mode: 0o644, Size: size})
		if err == nil {
			_, err = io.CopyN(w, ones{}, size)
		}
		if err == nil {
			err = w.Close()
		}
		pw.CloseWithError(err)
	}()
	info, err := ext4.FromTar(ctx, pr, dst, ext4.Options{})
	pr.Close()
	return image.Manifest{Schema: 1, Name: name, Digest: info.Digest, Size: info.Size}, err
}

type ones struct{}

func (ones) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 1
	}
	return len(p), nil
}
