package kernel

import (
	"archive/tar"
	"bufio"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"

	"github.com/banger-dev/banger/internal/kernel/bzimage"
	"github.com/banger-dev/banger/internal/kernel/kmod"
)

// Files of a stored kernel.
const (
	fileManifest = "manifest.json"
	fileVMLinux  = "vmlinux"
	fileConfig   = "config"
	fileModules  = "modules.ext4"
	dirBoot      = "boot"
	// OrderFile lies in BootModules and names the modules in load order,
	// one a line.
	OrderFile = "order"
)

// assemble makes the files of a stored kernel in out from what a Source
// fetched into parts, which it may change.
func assemble(ctx context.Context, r Recipe, o Origin, parts, out string) (Manifest, error) {
	m := Manifest{Schema: 1, Name: r.Name, Release: o.Release, Source: o.Source}
	config, err := os.ReadFile(filepath.Join(parts, "config"))
	if err != nil {
		return m, err
	}
	set := readConfig(config)
	if m.HZ, err = strconv.Atoi(set["CONFIG_HZ"]); err != nil || m.HZ < 1 || m.HZ > 10000 {
		return m, fmt.Errorf("the kernel's configuration has no usable CONFIG_HZ (%q)", set["CONFIG_HZ"])
	}
	// Without jump labels the kernel does not patch its own text at run
	// time, which is what several vCPUs under emulation stumble over.
	m.SafeSMP = set["CONFIG_JUMP_LABEL"] != "y"
	if err := os.WriteFile(filepath.Join(out, fileConfig), config, 0o600); err != nil {
		return m, err
	}
	if err := extract(filepath.Join(parts, "vmlinuz"), filepath.Join(out, fileVMLinux)); err != nil {
		return m, err
	}
	tree, err := kmod.ReadTree(ctx, filepath.Join(parts, "modules"))
	if err != nil {
		return m, err
	}
	if err := tree.WriteIndexes(); err != nil {
		return m, err
	}
	keepSig := set["CONFIG_MODULE_SIG_FORCE"] == "y"
	if err := bootModules(tree, r.BootModules, keepSig, filepath.Join(out, dirBoot)); err != nil {
		return m, err
	}
	if err := modulesImage(ctx, tree.Root, filepath.Join(out, fileModules)); err != nil {
		return m, err
	}
	return m, seal(out, &m)
}

func readConfig(b []byte) map[string]string {
	out := map[string]string{}
	for line := range strings.SplitSeq(string(b), "\n") {
		if k, v, ok := strings.Cut(line, "="); ok && strings.HasPrefix(k, "CONFIG_") {
			out[k] = v
		}
	}
	return out
}

func extract(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if e := out.Close(); err == nil {
			err = e
		}
	}()
	w := bufio.NewWriterSize(out, 1<<20)
	if _, err := bzimage.Extract(in, st.Size(), w); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	pvh, err := bzimage.HasPVH(out)
	if err == nil && !pvh {
		err = fmt.Errorf("%w: no PVH entry point, so no hypervisor here can boot it", bzimage.ErrFormat)
	}
	return err
}

// bootModules puts the named modules and what they need into dir with their
// load order: unpacked, and without signatures unless the kernel forces them,
// since both cost an emulated guest more than the rest of loading
// (docs/decisions/0006-plain-initramfs.md).
func bootModules(tree *kmod.Tree, names []string, keepSig bool, dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	builtin, err := tree.Builtin()
	if err != nil {
		return err
	}
	list, err := tree.LoadOrder(names, builtin)
	if err != nil {
		return err
	}
	var order strings.Builder
	for _, mod := range list {
		b, err := mod.Unpack(tree.Root)
		if err != nil {
			return err
		}
		if !keepSig {
			b = kmod.StripSignature(b)
		}
		name := mod.Name + ".ko"
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return err
		}
		order.WriteString(name + "\n")
	}
	return os.WriteFile(filepath.Join(dir, OrderFile), []byte(order.String()), 0o600)
}

// modulesImage writes the tree below root as a read-only ext4 image. The same
// tree gives the same bytes.
func modulesImage(ctx context.Context, root, to string) (err error) {
	out, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if e := out.Close(); err == nil {
			err = e
		}
	}()
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.CloseWithError(writeTar(ctx, root, w))
	}()
	err = tar2ext4.ConvertTarToExt4(r, out, tar2ext4.MaximumDiskSize(4<<30))
	_ = r.CloseWithError(io.ErrClosedPipe)
	<-done
	return err
}

// epoch stands for every time in what is made here, so that equal content has
// equal bytes.
var epoch = time.Unix(1, 0)

func writeTar(ctx context.Context, root string, w io.Writer) error {
	t := tar.NewWriter(w)
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		h := &tar.Header{Name: filepath.ToSlash(rel), ModTime: epoch, Format: tar.FormatPAX}
		switch {
		case d.IsDir():
			h.Typeflag, h.Mode, h.Name = tar.TypeDir, 0o755, h.Name+"/"
			return t.WriteHeader(h)
		case d.Type().IsRegular():
			return addFile(t, h, p)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return t.Close()
}

func addFile(t *tar.Writer, h *tar.Header, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	h.Typeflag, h.Mode, h.Size = tar.TypeReg, 0o644, st.Size()
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(t, f)
	return err
}
