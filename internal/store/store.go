// Package store is banger's memory: one SQLite database with numbered
// migrations, which keeps the rooms' records and the event log. It implements
// the rooms' Store ports and knows no rule of theirs. One daemon at a time has
// it open (the daemon's lock sees to that).
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	sqlite "modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/banger-dev/banger/internal/errs"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Store is the open database. Its methods may be called concurrently.
type Store struct {
	db   *sql.DB
	path string
	keep int // events
}

// Open opens the database at path, makes it when it is not there, and brings
// its schema up to this build's. Before a migration of an existing database a
// copy is written beside it (banger.db.v3.bak). A database of a newer banger
// and a damaged one are refused with words; neither is touched.
func Open(ctx context.Context, path string) (*Store, error) {
	if err := create(path); err != nil {
		return nil, errs.Wrap(err, errs.Unavailable, "store_open", "open %s", path)
	}
	db, err := sql.Open("sqlite", dsn(path))
	if err != nil {
		return nil, errs.Wrap(err, errs.Unavailable, "store_open", "open %s", path)
	}
	db.SetMaxOpenConns(4)
	db.SetMaxIdleConns(1)
	s := &Store{db: db, path: path, keep: maxEvents}
	if err := s.migrate(ctx); err != nil {
		db.Close()
		return nil, s.explain(err)
	}
	return s, nil
}

// Close closes the database.
func (s *Store) Close() error { return s.db.Close() }

// create makes an empty private file first, so that neither the database nor
// the -wal and -shm files beside it (which take its mode) are ever open to others.
func create(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Chmod(0o600)
}

// dsn carries every setting, so that each connection of the pool has them.
func dsn(path string) string {
	q := url.Values{"_pragma": {
		"busy_timeout(5000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)",
		"cache_size(-512)", "journal_size_limit(4194304)",
	}, "_txlock": {"immediate"}}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String()
}

func (s *Store) migrate(ctx context.Context) error {
	steps, err := loadMigrations()
	if err != nil {
		return err
	}
	return s.migrateWith(ctx, steps)
}

func (s *Store) migrateWith(ctx context.Context, steps []string) error {
	var have int
	if err := s.db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&have); err != nil {
		return err
	}
	want := len(steps)
	switch {
	case have > want:
		return errs.New(errs.Unsupported, "store_newer", "%s was written by a newer banger (schema %d, this one knows %d)", s.path, have, want).
			WithHint("install that banger again; the files it made before upgrading are beside it: ls %s.*.bak", s.path)
	case have == want:
		return s.check(ctx)
	case have > 0:
		if err := s.check(ctx); err != nil {
			return err
		}
		if err := s.backup(ctx, have); err != nil {
			return err
		}
	}
	for v := have; v < want; v++ {
		if err := s.apply(ctx, v+1, steps[v]); err != nil {
			return fmt.Errorf("migration %d: %w", v+1, err)
		}
	}
	return nil
}

func (s *Store) apply(ctx context.Context, version int, stmt string) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, stmt); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, "PRAGMA user_version = "+strconv.Itoa(version)); err != nil {
		return err
	}
	return tx.Commit()
}

// check reads every page's structure; the database is small.
func (s *Store) check(ctx context.Context) error {
	var result string
	if err := s.db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&result); err != nil {
		return err
	}
	if result != "ok" {
		return damaged(s.path, errors.New(result))
	}
	return nil
}

func (s *Store) backup(ctx context.Context, version int) error {
	dst := fmt.Sprintf("%s.v%d.bak", s.path, version)
	tmp := dst + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := s.db.ExecContext(ctx, "VACUUM INTO ?", tmp); err != nil {
		return fmt.Errorf("backup before migration: %w", err)
	}
	if err := os.Chmod(tmp, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, dst)
}

func loadMigrations() ([]string, error) {
	entries, err := fs.ReadDir(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	sort.Strings(names)
	out := make([]string, len(names))
	for i, name := range names {
		if !strings.HasPrefix(name, fmt.Sprintf("%04d_", i+1)) {
			return nil, fmt.Errorf("migration %s is out of order", name)
		}
		b, err := migrations.ReadFile("migrations/" + name)
		if err != nil {
			return nil, err
		}
		out[i] = string(b)
	}
	return out, nil
}

// explain turns SQLite's codes into what a person can act on.
func (s *Store) explain(err error) error {
	var e *errs.Error
	if err == nil || errors.As(err, &e) {
		return err
	}
	var se *sqlite.Error
	if errors.As(err, &se) {
		switch se.Code() & 0xff {
		case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
			return damaged(s.path, err)
		case sqlite3.SQLITE_FULL:
			return errs.New(errs.Exhausted, "disk_full", "write %s: no space left", s.path).
				WithHint("free some space: banger vm prune").Because(err)
		case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
			return errs.New(errs.Busy, "store_busy", "write %s: another process holds it", s.path).Because(err)
		}
	}
	return errs.Wrap(err, errs.Internal, "store", "%s", filepath.Base(s.path))
}

func damaged(path string, cause error) error {
	return errs.New(errs.Unavailable, "store_damaged", "%s is damaged", path).
		WithHint("VMs run on; rebuild it from their own records: bangerd --rebuild").Because(cause)
}

// Rebuild sets a damaged (or missing) database aside, as banger.db.damaged-TIME
// with its companions, and gives the name it has now, or "" where there was none.
func Rebuild(path string, now time.Time) (string, error) {
	aside := path + ".damaged-" + now.UTC().Format("20060102T150405.000")
	moved := ""
	for _, suffix := range []string{"", "-wal", "-shm"} {
		err := os.Rename(path+suffix, aside+suffix)
		switch {
		case err == nil && suffix == "":
			moved = aside
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return "", err
		}
	}
	return moved, nil
}
