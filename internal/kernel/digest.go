package kernel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/fsx"
)

// seal digests every file in dir, writes the manifest beside them and puts
// everything on disk.
func seal(dir string, m *Manifest) error {
	files, size, err := digestFiles(dir)
	if err != nil {
		return err
	}
	m.Files, m.Size, m.Digest = files, size, digestOf(files)
	m.Created = time.Now().UTC().Format(time.RFC3339)
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, fileManifest), append(b, '\n'), 0o600)
}

// digestFiles gives the sha256 of each file below dir but the manifest, and
// the sum of their sizes. It syncs them on the way.
func digestFiles(dir string) (map[string]string, int64, error) {
	files := map[string]string{}
	var size int64
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil || rel == fileManifest {
			return err
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		h := sha256.New()
		n, err := io.Copy(h, f)
		if err != nil {
			return err
		}
		files[filepath.ToSlash(rel)] = hex.EncodeToString(h.Sum(nil))
		size += n
		return f.Sync()
	})
	return files, size, err
}

// digestOf is the digest of a kernel by its files' digests.
func digestOf(files map[string]string) string {
	names := make([]string, 0, len(files))
	for n := range files {
		names = append(names, n)
	}
	sort.Strings(names)
	var b bytes.Buffer
	for _, n := range names {
		fmt.Fprintf(&b, "%s %s\n", files[n], n)
	}
	sum := sha256.Sum256(b.Bytes())
	return "sha256:" + hex.EncodeToString(sum[:])
}

func digestFile(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// classify gives an error without a kind the kind and code named; a full disk
// and an ended ctx have their own.
func classify(ctx context.Context, err error, kind errs.Kind, code, format string, args ...any) error {
	var e *errs.Error
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return errs.Wrap(ctx.Err(), errs.KindOf(ctx.Err()), "kernel_"+string(errs.KindOf(ctx.Err())), format, args...)
	case fsx.IsFull(err):
		return errs.New(errs.Exhausted, "disk_full", format, args...).Because(err).
			WithHint("free some space, see: banger doctor")
	case errors.As(err, &e):
		return err
	}
	return errs.Wrap(err, kind, code, format, args...)
}
