package qemu

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/hypervisor"
)

// What of a /proc/PID/pagemap entry tells a page private to the process: it
// is there or swapped out, and is no page of a file.
const (
	pagePresent = 1 << 63
	pageSwapped = 1 << 62
	pageOfFile  = 1 << 61
)

// SaveRAM writes the machine's RAM to path; see hypervisor.Saver. The pages
// are read from QEMU's memory, so it needs no help from QEMU but the address.
func (m *machine) SaveRAM(ctx context.Context, path string) error {
	const what = "save the memory of"
	c, err := m.control.get(ctx)
	if err != nil {
		return m.failed(err, what)
	}
	if err := mustBePaused(ctx, c); err != nil {
		return m.failed(err, what)
	}
	var said string
	if err := c.Execute(ctx, "human-monitor-command", map[string]any{"command-line": "gpa2hva 0"}, &said); err != nil {
		return m.failed(err, what)
	}
	base, err := parseHVA(said)
	if err != nil {
		return m.failed(err, what)
	}
	out, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return cannot(err, "save_ram", "%s machine %s", what, m.ref.ID)
	}
	defer out.Close()
	if err := m.saveRAM(ctx, out, base); err != nil {
		if errors.Is(err, os.ErrPermission) {
			return errs.New(errs.Denied, "save_ram_denied", "%s machine %s: its process's memory may not be read", what, m.ref.ID).
				WithHint("run bangerd as the user that started the machine, or with CAP_SYS_PTRACE").Because(err)
		}
		return cannot(err, "save_ram", "%s machine %s", what, m.ref.ID)
	}
	return nil
}

func (m *machine) saveRAM(ctx context.Context, out *os.File, base uint64) error {
	if m.ref.RAMShared {
		from, err := os.Open(m.ref.RAMBase)
		if err != nil {
			return err
		}
		defer from.Close()
		return errors.Join(copySparse(ctx, out, from, m.ref.Memory), out.Sync())
	}
	fi, err := out.Stat()
	if err != nil {
		return err
	}
	empty := fi.Size() == 0
	if empty == (m.ref.RAMBase != "") {
		return fmt.Errorf("the file of %d bytes is no copy of the machine's base", fi.Size())
	}
	if err := out.Truncate(m.ref.Memory); err != nil {
		return err
	}
	dir := "/proc/" + strconv.Itoa(m.ref.Process.PID)
	pagemap, err := os.Open(dir + "/pagemap")
	if err != nil {
		return err
	}
	defer pagemap.Close()
	mem, err := os.Open(dir + "/mem")
	if err != nil {
		return err
	}
	defer mem.Close()
	// Opened by number: only now is it certain whose they are.
	select {
	case <-m.proc.Done():
		return hypervisor.ErrGone
	default:
	}
	s := saver{mem: mem, out: out, base: int64(base), skipZero: empty}
	if err := s.save(ctx, pagemap, m.ref.Memory); err != nil {
		return err
	}
	return out.Sync()
}

var hvaLine = regexp.MustCompile(`^Host virtual address for 0x0 \([^)]{1,64}\) is 0x([0-9a-f]{1,16})\s*$`)

// parseHVA reads where in QEMU's memory the guest's address 0 lies.
func parseHVA(said string) (uint64, error) {
	m := hvaLine.FindStringSubmatch(said)
	if m == nil {
		return 0, fmt.Errorf("unexpected answer %q", clean(said))
	}
	v, err := strconv.ParseUint(m[1], 16, 63)
	if err != nil || v == 0 || v%uint64(os.Getpagesize()) != 0 {
		return 0, fmt.Errorf("unexpected address %q", m[1])
	}
	return v, nil
}

// saver copies the private pages of one memory range to a file.
type saver struct {
	mem      io.ReaderAt
	out      io.WriterAt
	base     int64 // address of the range in mem
	skipZero bool  // the file is all holes: zeros need no writing
	buf      []byte
}

const (
	entrySize   = 8
	scanEntries = 64 << 10 // pages looked at in one read: 256 MiB of RAM
	saveBuffer  = 1 << 20
)

func (s *saver) save(ctx context.Context, pagemap io.ReaderAt, size int64) error {
	page := int64(os.Getpagesize())
	s.buf = make([]byte, saveBuffer)
	entries := make([]byte, scanEntries*entrySize)
	for pos := int64(0); pos < size; pos += scanEntries * page {
		n := min(scanEntries, (size-pos)/page)
		at := (s.base + pos) / page * entrySize
		if _, err := pagemap.ReadAt(entries[:n*entrySize], at); err != nil {
			return fmt.Errorf("read page map: %w", err)
		}
		for _, r := range privateRuns(entries[:n*entrySize]) {
			if err := s.copy(ctx, pos+r.first*page, r.count*page); err != nil {
				return err
			}
		}
	}
	return nil
}

// run is a stretch of pages.
type run struct{ first, count int64 }

// privateRuns finds the stretches of private pages in page map entries.
func privateRuns(entries []byte) []run {
	var runs []run
	for i := int64(0); i < int64(len(entries)/entrySize); i++ {
		e := binary.NativeEndian.Uint64(entries[i*entrySize:])
		if e&(pagePresent|pageSwapped) == 0 || e&pageOfFile != 0 {
			continue
		}
		if k := len(runs) - 1; k >= 0 && runs[k].first+runs[k].count == i {
			runs[k].count++
			continue
		}
		runs = append(runs, run{i, 1})
	}
	return runs
}

// copy copies size bytes at pos of the range to the same place in the file.
func (s *saver) copy(ctx context.Context, pos, size int64) error {
	for size > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := s.buf[:min(size, int64(len(s.buf)))]
		if _, err := s.mem.ReadAt(b, s.base+pos); err != nil {
			if errors.Is(err, unix.EIO) {
				return errors.New("the machine's memory went away")
			}
			return fmt.Errorf("read memory: %w", err)
		}
		if err := s.write(b, pos); err != nil {
			return err
		}
		pos += int64(len(b))
		size -= int64(len(b))
	}
	return nil
}

var zeros [4096]byte

func (s *saver) write(b []byte, pos int64) error {
	if !s.skipZero {
		_, err := s.out.WriteAt(b, pos)
		return err
	}
	isZero := func(i int) bool { return bytes.Equal(b[i:i+len(zeros)], zeros[:]) }
	for i := 0; i < len(b); {
		from := i
		if isZero(i) {
			i += len(zeros)
			continue
		}
		for i < len(b) && !isZero(i) {
			i += len(zeros)
		}
		if _, err := s.out.WriteAt(b[from:i], pos+int64(from)); err != nil {
			return err
		}
	}
	return nil
}
