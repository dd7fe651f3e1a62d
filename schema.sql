-- The database of Lastcall, for PostgreSQL 15 and later. Applied by `flask --app app init-db`, as often as you like.
-- Order: enums, tables, indices (each with its why), functions, triggers, roles.
-- The one rule: a generation only ever rises, and whatever raises it (the application, psql, a migration) writes
-- the cutoff in the same transaction, by trigger. tests/database/test_triggers.py holds it.
-- Advisory locks: 7530001 to apply this (models/database.py), 7530002 to lose an admin (models/user.py), 7530003 the
-- failures of sign-ins (here), 7530004 to clean (models/purge.py), 7530005 to end what is in doubt
-- (lastcall/listener.py), 7530006 the canary (models/housekeeping.py).

-- ---------------------------------------------------------------------------------------------------------- enums
DO $$
BEGIN
    IF to_regtype('cutoff_scope') IS NULL THEN
        CREATE TYPE cutoff_scope AS ENUM ('everyone', 'user', 'session');
    END IF;
END
$$;

-- --------------------------------------------------------------------------------------------------------- tables
CREATE TABLE IF NOT EXISTS users (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    username text NOT NULL CHECK (length(username) BETWEEN 1 AND 100),
    password_hash text NOT NULL,
    gen bigint NOT NULL DEFAULT 0 CHECK (gen BETWEEN 0 AND 9007199254740991),
    disabled_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE IF NOT EXISTS user_roles (
    user_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    role text NOT NULL CHECK (length(role) BETWEEN 1 AND 64),
    PRIMARY KEY (user_id, role)
);

-- One row: everyone's generation, and what a cutoff needs to know of tokens that no row tells of.
CREATE TABLE IF NOT EXISTS everyone (
    one boolean PRIMARY KEY DEFAULT TRUE CHECK (one),
    gen bigint NOT NULL DEFAULT 0 CHECK (gen BETWEEN 0 AND 9007199254740991),
    access_ttl_s integer NOT NULL DEFAULT 300, -- a sign-in that is in flight now may mint a token that lives so long
    purged_until timestamptz NOT NULL DEFAULT '-infinity', -- the newest cutoff_at that was purged (lastcall/cutoffs.py)
    purged_at timestamptz NOT NULL DEFAULT '-infinity', -- the clock at the newest purge: it must never step back behind it
    canary_at timestamptz -- the newest canary that every live worker has refused (models/canary.py)
);
INSERT INTO everyone (one) VALUES (TRUE) ON CONFLICT DO NOTHING;

-- No foreign key to users: the history of a deleted user stays. Refresh tokens stand here as SHA-256 only.
CREATE TABLE IF NOT EXISTS login_sessions (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id uuid NOT NULL,
    username text NOT NULL,
    roles text [] NOT NULL,
    client_id text NOT NULL,
    ip inet,
    last_ip inet,
    user_agent text NOT NULL DEFAULT '',
    device text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    token_expires_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    user_gen bigint NOT NULL,
    everyone_gen bigint NOT NULL,
    family_hash bytea NOT NULL,
    refresh_hash bytea NOT NULL,
    previous_refresh_hash bytea,
    sealed_successor bytea, -- the current refresh token, readable only with the previous one (models/refresh_token.py)
    rotated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz,
    ended_scope cutoff_scope,
    ended_by text,
    end_reason text,
    lapsed boolean NOT NULL DEFAULT FALSE, -- it has expired, and the housekeeping has noted it
    -- Where lists find it: under everyone's generation, on the same one mirrored when it has expired, on -1 when ended.
    -- A log-out of everyone thus leaves a whole shelf behind, without touching its rows.
    shelf bigint NOT NULL GENERATED ALWAYS AS (
        CASE WHEN ended_at IS NOT NULL THEN -1 WHEN lapsed THEN -2 - everyone_gen ELSE everyone_gen END
    ) STORED
);

DO $$
BEGIN
    -- A database that was made before lists had shelves.
    IF NOT EXISTS (
        SELECT FROM pg_attribute WHERE attrelid = 'login_sessions'::regclass AND attname = 'shelf' AND NOT attisdropped
    ) THEN
        ALTER TABLE login_sessions
        ADD COLUMN lapsed boolean NOT NULL DEFAULT FALSE,
        ADD COLUMN shelf bigint NOT NULL GENERATED ALWAYS AS (
            CASE WHEN ended_at IS NOT NULL THEN -1 WHEN lapsed THEN -2 - everyone_gen ELSE everyone_gen END
        ) STORED;
        DROP INDEX IF EXISTS login_sessions_active, login_sessions_newest, login_sessions_user, login_sessions_expires;
    END IF;
END
$$;

-- Whose sessions have ended since his generation rose, all at once, however many: the rows are marked in batches. It
-- stays for a minute, for a sign-in that was in flight and wrote its row meanwhile.
CREATE TABLE IF NOT EXISTS unmarked_ends (
    user_id uuid NOT NULL,
    gen bigint NOT NULL, -- sessions of a lower one have ended
    ended_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_by text NOT NULL,
    end_reason text NOT NULL,
    PRIMARY KEY (user_id, gen)
);

-- Under what names sessions of deleted and renamed users are still listed, to search for.
CREATE TABLE IF NOT EXISTS former_names (
    user_id uuid NOT NULL,
    username text NOT NULL,
    PRIMARY KEY (user_id, username)
);

-- What workers hold in memory. No foreign key: a deleted user's cutoff must stay until his last token has expired.
CREATE TABLE IF NOT EXISTS cutoffs (
    scope cutoff_scope NOT NULL,
    subject text NOT NULL DEFAULT '', -- user id, session id, or '' for everyone
    min_gen bigint NOT NULL DEFAULT 0 CHECK (min_gen BETWEEN 0 AND 9007199254740991),
    cutoff_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(), -- whose commit a worker must have seen to have confirmed
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (scope, subject)
);

-- The history. Rows are only ever added.
CREATE TABLE IF NOT EXISTS revocations (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    scope text NOT NULL CHECK (scope IN ('everyone', 'user', 'session', 'filter')),
    subject text NOT NULL DEFAULT '',
    subject_name text NOT NULL DEFAULT '',
    filter jsonb,
    reason text CHECK (length(reason) <= 500),
    actor_id text,
    actor_name text NOT NULL,
    actor_session text,
    actor_ip inet,
    cause text NOT NULL, -- force_logout, logout, user_deleted, user_disabled, password_changed, role_lost, …
    min_gen bigint,
    cutoff_at timestamptz NOT NULL,
    sessions_ended bigint NOT NULL,
    expires_at timestamptz NOT NULL
);

-- One row for each process that checks tokens: its lease and how far it has read (lastcall/listener.py).
CREATE TABLE IF NOT EXISTS workers (
    id uuid PRIMARY KEY,
    service text NOT NULL,
    host text NOT NULL,
    pid integer NOT NULL,
    version text NOT NULL DEFAULT '',
    lease_s double precision CHECK (lease_s BETWEEN 0 AND 3600), -- a service writes it: a number to count with
    renewals bigint NOT NULL DEFAULT 0, -- moves with each renewal: observers judge the lease by it, not by a clock
    renewed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    snapshot pg_snapshot, -- the position: every cutoff whose xid is visible in it has been applied
    incarnation uuid, -- of the server when the worker connected: a position from before a crash says nothing
    canary bigint NOT NULL DEFAULT 0, -- the newest canary that this process has refused
    role_name name DEFAULT current_user -- a service may change the rows of its own role only
);

DO $$
BEGIN
    -- A database of before. Once only: this locks the table that every lease needs.
    IF NOT EXISTS (
        SELECT FROM pg_constraint WHERE conrelid = 'workers'::regclass AND conname = 'workers_lease_s_check'
    ) THEN
        LOCK TABLE workers;
        DELETE FROM workers WHERE NOT (lease_s BETWEEN 0 AND 3600); -- receipts break off at such a row
        ALTER TABLE workers ADD CONSTRAINT workers_lease_s_check CHECK (lease_s BETWEEN 0 AND 3600);
    END IF;
END
$$;

-- One row for the time since the server's last crash or promotion, which empty an unlogged table (PostgreSQL manual,
-- CREATE TABLE): transaction ids may be used again after it, and a confirmation waits one lease (models/worker.py).
CREATE UNLOGGED TABLE IF NOT EXISTS incarnation (
    one boolean PRIMARY KEY DEFAULT TRUE CHECK (one),
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    since timestamptz NOT NULL DEFAULT clock_timestamp()
);
-- In a new database nobody can hold a lease from before.
INSERT INTO incarnation (since) SELECT '-infinity' WHERE NOT EXISTS (SELECT FROM workers) ON CONFLICT DO NOTHING;

-- Sign-ins that failed, or are being tried: what throttles guessing, for all workers as one (models/throttle.py).
CREATE TABLE IF NOT EXISTS sign_in_attempts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name_key text NOT NULL,
    address_key text NOT NULL,
    tried_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- -------------------------------------------------------------------------------------------------------- indices
-- "Ann" and "ann" must not be two people.
CREATE UNIQUE INDEX IF NOT EXISTS users_username_key ON users (lower(username));
-- "Who is an admin?": the last one must stay.
CREATE INDEX IF NOT EXISTS user_roles_role ON user_roles (role);
-- The list in each of its orders; whatever has ended, or expired, is on another shelf.
CREATE INDEX IF NOT EXISTS login_sessions_by_created ON login_sessions (shelf, created_at, id);
CREATE INDEX IF NOT EXISTS login_sessions_by_seen ON login_sessions (shelf, last_seen_at, id);
CREATE INDEX IF NOT EXISTS login_sessions_by_name ON login_sessions (shelf, username, id);
-- One user's sessions, and the sessions of one client, in the list's own order. A force logout counts by the index alone.
CREATE INDEX IF NOT EXISTS login_sessions_by_user ON login_sessions (user_id, shelf, created_at, id)
INCLUDE (expires_at, user_gen);
CREATE INDEX IF NOT EXISTS login_sessions_by_client ON login_sessions (client_id, shelf, created_at, id);
-- The last moment one of a user's tokens can be alive. Partial, though every row is in it: a list, which does not ask
-- for this, must not take it and join it with the index of a client.
CREATE INDEX IF NOT EXISTS login_sessions_last_token ON login_sessions (user_id, token_expires_at)
WHERE token_expires_at > '-infinity';
-- Who is in from this address, or from this network? Most sessions stay where they began: the second one is small.
CREATE INDEX IF NOT EXISTS login_sessions_by_ip ON login_sessions (ip);
CREATE INDEX IF NOT EXISTS login_sessions_by_last_ip ON login_sessions (last_ip) WHERE last_ip IS DISTINCT FROM ip;
-- Who is in with this role, be it a rare one? No pending list: one session would pay for many.
CREATE INDEX IF NOT EXISTS login_sessions_by_role ON login_sessions USING gin (roles) WITH (fastupdate = off);
-- A part of a name finds its user: an index of sessions would cost each sign-in and refresh, users change rarely. Whoever
-- applies this without the right to CREATE EXTENSION searches slowly.
DO $$
BEGIN
    CREATE EXTENSION IF NOT EXISTS pg_trgm;
    CREATE INDEX IF NOT EXISTS users_username_parts ON users USING gin (username gin_trgm_ops);
    CREATE INDEX IF NOT EXISTS former_names_parts ON former_names USING gin (username gin_trgm_ops);
EXCEPTION
    WHEN insufficient_privilege OR feature_not_supported OR undefined_file OR undefined_object THEN
        RAISE NOTICE 'pg_trgm is not there: to search for a part of a name reads all names';
END
$$;
-- A refresh finds its session.
CREATE UNIQUE INDEX IF NOT EXISTS login_sessions_family ON login_sessions (family_hash);
-- The last moment at which anyone's token can be alive.
CREATE INDEX IF NOT EXISTS login_sessions_token_expires ON login_sessions (token_expires_at);
-- The housekeeping finds what has expired, and what is long over.
CREATE INDEX IF NOT EXISTS login_sessions_by_expiry ON login_sessions (shelf, expires_at);
-- Each round of a worker reads what is newer than its last snapshot.
CREATE INDEX IF NOT EXISTS cutoffs_xid ON cutoffs (xid);
-- The purge finds what is over.
CREATE INDEX IF NOT EXISTS cutoffs_expires ON cutoffs (expires_at);
-- The history, newest first.
CREATE INDEX IF NOT EXISTS revocations_newest ON revocations (created_at DESC, id DESC);
-- "Why was this token refused?", and a token without generations from before the last purge.
CREATE INDEX IF NOT EXISTS revocations_subject ON revocations (scope, subject, created_at DESC);
-- Failures of a name, of an address, in the last minutes.
CREATE INDEX IF NOT EXISTS sign_in_attempts_name ON sign_in_attempts (name_key, tried_at);
CREATE INDEX IF NOT EXISTS sign_in_attempts_address ON sign_in_attempts (address_key, tried_at);

-- ------------------------------------------------------------------------------------------------------ functions
-- How much longer than its last token a cutoff is kept: for the statement that writes it, which may take 8 s
-- (models/database.py), and for the rounding of `exp` to whole seconds.
CREATE OR REPLACE FUNCTION cutoff_leeway() RETURNS interval LANGUAGE sql IMMUTABLE
RETURN interval '10 seconds';

-- When the last token under an older generation is over: those on record, and those being minted at this moment.
CREATE OR REPLACE FUNCTION cutoff_expiry(last_token_expires_at timestamptz) RETURNS timestamptz LANGUAGE sql STABLE
RETURN
    greatest(
        last_token_expires_at,
        clock_timestamp() + (SELECT make_interval(secs => access_ttl_s) FROM everyone)
    ) + cutoff_leeway();

-- A name that was tried, as it is counted: found as users are, by the database's own idea of upper and lower case, and
-- not to be read.
CREATE OR REPLACE FUNCTION sign_in_name_key(tried_name text) RETURNS text LANGUAGE sql STABLE
RETURN encode(sha256(convert_to(lower(tried_name), 'UTF8')), 'hex');

-- What failures of this name and this address are counted under, as advisory locks, in one order, so that two who take
-- them cannot wait for each other.
CREATE OR REPLACE FUNCTION sign_in_locks(tried_key text, tried_address text) RETURNS SETOF bigint
LANGUAGE sql IMMUTABLE AS $$
    SELECT hashtextextended(key, 7530003) FROM unnest(ARRAY[tried_key, tried_address]) AS key ORDER BY key;
$$;

-- The failures of a name or of an address in the window, the larger number; and when that ends (seconds). With
-- `let_none_in_between` none is counted from here to the end of the transaction, and all before are seen: plpgsql reads
-- in a new snapshot after the locks. They are shared, so that people behind one address wait for those who fail, not
-- for each other.
CREATE OR REPLACE FUNCTION sign_in_failures(
    tried_name text, tried_address text, window_s integer, most integer, let_none_in_between boolean,
    OUT failures bigint, OUT wait_s integer
) LANGUAGE plpgsql AS $$
DECLARE
    tried_key text := sign_in_name_key(tried_name);
    since timestamptz;
BEGIN
    IF let_none_in_between THEN
        PERFORM pg_advisory_xact_lock_shared(taken) FROM sign_in_locks(tried_key, tried_address) AS taken;
    END IF;
    since := clock_timestamp() - make_interval(secs => window_s);
    SELECT count(*), greatest(1, ceil(extract(epoch FROM min(tried_at) - since))::integer)
    INTO failures, wait_s
    FROM (
        (
            SELECT 'name' AS found_by, tried_at FROM sign_in_attempts
            WHERE name_key = tried_key AND tried_at > since ORDER BY tried_at DESC LIMIT most
        ) UNION ALL (
            SELECT 'address', tried_at FROM sign_in_attempts
            WHERE address_key = tried_address AND tried_at > since ORDER BY tried_at DESC LIMIT most
        )
    ) AS failed
    GROUP BY found_by ORDER BY count(*) DESC, found_by LIMIT 1;
    failures := coalesce(failures, 0);
END
$$;

-- Count a failure, for all workers as one. Returns what there are then.
CREATE OR REPLACE FUNCTION note_sign_in_failure(
    tried_name text, tried_address text, window_s integer, most integer, OUT failures bigint, OUT wait_s integer
) LANGUAGE plpgsql AS $$
DECLARE
    tried_key text := sign_in_name_key(tried_name);
BEGIN
    PERFORM pg_advisory_xact_lock(taken) FROM sign_in_locks(tried_key, tried_address) AS taken;
    INSERT INTO sign_in_attempts (name_key, address_key) VALUES (tried_key, tried_address);
    SELECT * INTO failures, wait_s FROM sign_in_failures(tried_name, tried_address, window_s, most, FALSE);
END
$$;

-- NULL for what is no uuid: subjects are text, also of tokens that were minted elsewhere.
CREATE OR REPLACE FUNCTION as_uuid(subject text) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN CASE
    WHEN subject ~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$' THEN subject::uuid
END;

-- A time that clients can be told: for «never» people write infinity, which has no year.
CREATE OR REPLACE FUNCTION with_a_year(moment timestamptz) RETURNS timestamptz LANGUAGE sql STABLE
RETURN CASE WHEN moment IS NOT NULL THEN least(greatest(moment, 'epoch'), '9999-01-01'::timestamptz) END;

-- Raise a cutoff, or keep it for longer: one whose generation another writer has raised already may end before the
-- tokens that it is about. Its time rises with its generation alone, for tokens that have none are judged by it.
CREATE OR REPLACE FUNCTION raise_cutoff(
    new_scope cutoff_scope, new_subject text, new_min_gen bigint, new_expires_at timestamptz
) RETURNS void LANGUAGE sql AS $$
    INSERT INTO cutoffs AS old (scope, subject, min_gen, cutoff_at, expires_at)
    VALUES (new_scope, new_subject, new_min_gen, clock_timestamp(), new_expires_at)
    ON CONFLICT (scope, subject) DO UPDATE SET
        min_gen = excluded.min_gen, expires_at = excluded.expires_at, cutoff_at = CASE
            WHEN old.min_gen < excluded.min_gen OR new_scope = 'session' THEN excluded.cutoff_at ELSE old.cutoff_at
        END
    WHERE old.min_gen < excluded.min_gen OR old.expires_at < excluded.expires_at OR new_scope = 'session';
$$;

-- A setting that the application gives its transaction, for the history; NULL when it gave none (psql).
CREATE OR REPLACE FUNCTION said(name text) RETURNS text LANGUAGE sql STABLE
RETURN nullif(current_setting('lastcall.' || name, TRUE), '');

-- The history row of a user's or everyone's cutoff, which a trigger has raised. A revocation that hits many writes its
-- own, and says so by revocation_id (models/force_logout.py).
CREATE OR REPLACE FUNCTION write_history(
    new_scope cutoff_scope, new_subject text, name text, new_cause text, ended bigint
) RETURNS void LANGUAGE sql AS $$
    INSERT INTO revocations (
        id, scope, subject, subject_name, reason, actor_id, actor_name, actor_session, actor_ip, cause, min_gen,
        cutoff_at, sessions_ended, expires_at
    )
    SELECT
        coalesce(as_uuid(said('history_id')), gen_random_uuid()), new_scope::text, new_subject, name,
        left(said('reason'), 500), said('actor_id'), coalesce(said('actor_name'), 'database role ' || session_user),
        said('actor_session'), said('actor_ip')::inet, new_cause, c.min_gen, c.cutoff_at, ended, c.expires_at
    FROM cutoffs AS c
    WHERE c.scope = new_scope AND c.subject = new_subject AND said('revocation_id') IS NULL;
$$;

-- The user's generation has risen to `generation`: cut off, end his sessions, write the history. Twenty rows are
-- marked at once, the others soon: they have ended all the same (unmarked_ends). Its plans are kept, and some are made
-- while a table is empty: for ten thousand users in one transaction it must not be read from one end to the other, and
-- a bitmap would be of all that a user ever had. Where no index will do, what is off counts as so dear, before
-- PostgreSQL 18, that the query is compiled first (jit): 28 to 66 ms for each force logout, and 1.4 without.
CREATE OR REPLACE FUNCTION cut_off_user(cut_user uuid, name text, generation bigint, new_cause text)
RETURNS void LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
    ended bigint := 0;
    moment timestamptz := clock_timestamp();
    expires timestamptz := cutoff_expiry((
        SELECT max(token_expires_at) FROM login_sessions WHERE user_id = cut_user AND token_expires_at > '-infinity'
    ));
    who text := coalesce(said('actor_name'), 'database role ' || session_user);
    why text := coalesce(said('reason'), new_cause);
    -- What an earlier end has ended, and nobody has marked yet, is not ended by this one.
    before bigint := coalesce((SELECT max(e.gen) FROM unmarked_ends AS e WHERE e.user_id = cut_user), 0);
    kept uuid := as_uuid(said('keep_session'));
BEGIN
    PERFORM raise_cutoff('user', cut_user::text, generation, expires);
    IF said('revocation_id') IS NULL THEN
        SELECT count(*) INTO ended FROM login_sessions AS s
        WHERE s.user_id = cut_user AND s.shelf = (SELECT gen FROM everyone)
            AND s.user_gen < generation AND s.user_gen >= before
            AND s.expires_at > moment AND s.id IS DISTINCT FROM kept;
    END IF;
    INSERT INTO unmarked_ends (user_id, gen, ended_at, ended_by, end_reason)
    VALUES (cut_user, generation, moment, who, why) ON CONFLICT DO NOTHING;
    -- Whoever holds one of these rows is not waited for: two who end sessions at once would deadlock.
    UPDATE login_sessions AS s SET ended_at = moment, ended_scope = 'user', ended_by = who, end_reason = why
    FROM (
        SELECT found.id FROM (VALUES (0, 1::bigint << 62), (-1::bigint << 62, -2)) AS not_marked (first, last)
        CROSS JOIN LATERAL (
            SELECT id FROM login_sessions
            WHERE user_id = cut_user AND shelf BETWEEN first AND last
                AND user_gen < generation AND user_gen >= before AND id IS DISTINCT FROM kept
            LIMIT 20 FOR UPDATE SKIP LOCKED
        ) AS found LIMIT 20
    ) AS old
    WHERE s.id = old.id;
    IF said('revocation_id') IS NULL THEN
        PERFORM write_history('user', cut_user::text, name, new_cause, ended);
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION users_before_insert() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.disabled_at := with_a_year(NEW.disabled_at);
    -- The same id again (a restored row): his old tokens and sessions must stay dead.
    NEW.gen := greatest(
        NEW.gen,
        (SELECT min_gen FROM cutoffs WHERE scope = 'user' AND subject = NEW.id::text),
        (SELECT max(min_gen) FROM revocations WHERE scope = 'user' AND subject = NEW.id::text),
        (SELECT max(user_gen) + 1 FROM login_sessions WHERE user_id = NEW.id)
    );
    RETURN NEW;
END
$$;

CREATE OR REPLACE FUNCTION users_before_update() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.id <> OLD.id THEN
        RAISE EXCEPTION 'users.id never changes: tokens name it' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    NEW.disabled_at := with_a_year(NEW.disabled_at);
    NEW.gen := greatest(NEW.gen, OLD.gen);
    IF NEW.password_hash <> OLD.password_hash AND said('rehash') IS NULL
        OR NEW.disabled_at IS NOT NULL AND OLD.disabled_at IS NULL THEN
        NEW.gen := greatest(NEW.gen, OLD.gen + 1);
    END IF;
    RETURN NEW;
END
$$;

CREATE OR REPLACE FUNCTION users_after_update() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM cut_off_user(NEW.id, NEW.username, NEW.gen, CASE
        WHEN NEW.disabled_at IS NOT NULL AND OLD.disabled_at IS NULL THEN 'user_disabled'
        WHEN NEW.password_hash <> OLD.password_hash THEN 'password_changed'
        ELSE coalesce(said('cause'), 'generation_raised') END);
    RETURN NULL;
END
$$;

-- A force logout, in one answer to wait for: a busy server waits for each behind everybody else's work. The settings are
-- for the triggers, which do the rest. No row where there is no such user (any more).
CREATE OR REPLACE FUNCTION force_logout(cut_user uuid, names text [], settings text [])
RETURNS TABLE (
    subject_name text, sessions_ended bigint, cutoff_at timestamptz, transaction_id xid8
) LANGUAGE plpgsql AS $$
DECLARE
    written uuid; -- what is worked out within a query may be worked out for each row
BEGIN
    PERFORM set_config(given.name, given.setting, TRUE) FROM unnest(names, settings) AS given (name, setting);
    written := as_uuid(said('history_id'));
    UPDATE users SET gen = gen + 1 WHERE id = cut_user;
    RETURN QUERY
    SELECT r.subject_name, r.sessions_ended, r.cutoff_at, pg_current_xact_id() FROM revocations AS r
    WHERE r.id = written;
END
$$;

CREATE OR REPLACE FUNCTION users_after_new_name() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO former_names (user_id, username)
    SELECT OLD.id, OLD.username WHERE EXISTS (SELECT FROM login_sessions WHERE user_id = OLD.id)
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION users_after_delete() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM cut_off_user(OLD.id, OLD.username, OLD.gen + 1, 'user_deleted');
    RETURN NULL;
END
$$;

-- Of users: everyone is out. Of cutoffs: workers that start would know none.
CREATE OR REPLACE FUNCTION everyone_after_truncate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE everyone SET gen = gen + 1;
    RETURN NULL;
END
$$;

-- With the rows goes what they say of lifetimes: the cutoff stays for as long as any access token may live
-- (settings.py).
CREATE OR REPLACE FUNCTION login_sessions_after_truncate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE everyone SET gen = gen + 1;
    PERFORM raise_cutoff('everyone', '', gen, cutoff_expiry(clock_timestamp() + interval '1 day')) FROM everyone;
    RETURN NULL;
END
$$;

-- Workers that start would not know of it, while those that run go on refusing: nothing undoes a revocation.
CREATE OR REPLACE FUNCTION cutoffs_before_delete() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE WARNING 'the cutoff of % "%" was not deleted: it stays until its last token has expired, at %',
        OLD.scope, OLD.subject, OLD.expires_at;
    RETURN NULL;
END
$$;

-- As after a crash: a confirmation waits one lease, because the workers that stood here may still trust theirs.
CREATE OR REPLACE FUNCTION workers_after_truncate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE incarnation SET id = gen_random_uuid(), since = clock_timestamp();
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION user_roles_after_loss() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF lower(coalesce(said('revoke_on_role_removal'), 'on')) NOT IN ('off', 'false', 'no', '0') THEN
        PERFORM set_config('lastcall.cause', 'role_lost', TRUE);
        -- One rise a transaction: two roles lost at once are one revocation.
        UPDATE users SET gen = gen + 1 WHERE id = OLD.user_id AND NOT EXISTS (
            SELECT FROM cutoffs
            WHERE scope = 'user' AND subject = OLD.user_id::text AND xid = pg_current_xact_id() AND min_gen = users.gen
        );
        PERFORM set_config('lastcall.cause', '', TRUE);
    END IF;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION user_roles_after_truncate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF lower(coalesce(said('revoke_on_role_removal'), 'on')) NOT IN ('off', 'false', 'no', '0') THEN
        UPDATE everyone SET gen = gen + 1;
    END IF;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION everyone_after_update() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    expires timestamptz := cutoff_expiry((SELECT max(token_expires_at) FROM login_sessions));
BEGIN
    PERFORM raise_cutoff('everyone', '', NEW.gen, expires);
    PERFORM write_history('everyone', '', '', coalesce(said('cause'), 'generation_raised'), 0);
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION everyone_before_update() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.gen := greatest(NEW.gen, OLD.gen);
    RETURN NEW;
END
$$;

CREATE OR REPLACE FUNCTION login_sessions_after_end() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM raise_cutoff('session', OLD.id::text, 0, OLD.token_expires_at + cutoff_leeway());
    RETURN NULL;
END
$$;

-- Stamps the position, and holds "only ever rises" and "durable" for every writer.
CREATE OR REPLACE FUNCTION cutoffs_before_write() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- A row from another region that is here already: a duplicate key would stop the replication for good.
    IF TG_OP = 'INSERT' AND current_setting('session_replication_role') = 'replica' THEN
        UPDATE cutoffs SET min_gen = NEW.min_gen, cutoff_at = NEW.cutoff_at, expires_at = NEW.expires_at
        WHERE scope = NEW.scope AND subject = NEW.subject;
        IF FOUND THEN
            RETURN NULL;
        END IF;
    END IF;
    IF current_setting('synchronous_commit') IN ('off', 'local') THEN
        PERFORM set_config('synchronous_commit', 'on', TRUE);
    END IF;
    IF NEW.min_gen > 4503599627370496 THEN
        RAISE EXCEPTION 'min_gen % is refused: above 2^52 there would be no room for the next revocations', NEW.min_gen
        USING ERRCODE = 'check_violation';
    END IF;
    NEW.xid := pg_current_xact_id();
    NEW.expires_at := coalesce(NEW.expires_at, cutoff_expiry(
        (SELECT max(token_expires_at) FROM login_sessions WHERE NEW.scope = 'user' AND user_id = as_uuid(NEW.subject))
    ));
    NEW.cutoff_at := with_a_year(NEW.cutoff_at);
    NEW.expires_at := with_a_year(NEW.expires_at);
    IF TG_OP = 'UPDATE' THEN
        NEW.min_gen := greatest(NEW.min_gen, OLD.min_gen);
        NEW.cutoff_at := greatest(NEW.cutoff_at, OLD.cutoff_at);
        NEW.expires_at := greatest(NEW.expires_at, OLD.expires_at);
    END IF;
    RETURN NEW;
END
$$;

-- A hint to look now; nothing depends on it. A foreign writer's cutoff also lifts the counter that sign-ins read, or
-- nobody could sign in until it expires; and it ends the session, or a refresh would bring tokens that are dead.
CREATE OR REPLACE FUNCTION cutoffs_after_write() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- A queue that is full (a listener stuck in a transaction) would abort the commit; the periodic reads do without.
    IF pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('lastcall_cutoffs', '');
    END IF;
    IF NEW.scope = 'user' THEN
        UPDATE users SET gen = NEW.min_gen WHERE id = as_uuid(NEW.subject) AND gen < NEW.min_gen;
    ELSIF NEW.scope = 'everyone' THEN
        UPDATE everyone SET gen = NEW.min_gen WHERE gen < NEW.min_gen;
    ELSE
        UPDATE login_sessions SET
            ended_at = clock_timestamp(), ended_scope = 'session',
            ended_by = coalesce(said('actor_name'), 'database role ' || session_user),
            end_reason = coalesce(said('reason'), 'session_ended')
        WHERE id = as_uuid(NEW.subject) AND ended_at IS NULL;
    END IF;
    -- Where that has lifted nothing, nothing but the history remembers a foreign writer's cutoff once it is purged, and
    -- tokens without generations may live on (lastcall/ask.py). The server's own calls of raise_cutoff are none.
    IF NOT FOUND AND pg_trigger_depth() = 1 AND NEW.cutoff_at IS DISTINCT FROM OLD.cutoff_at
        AND current_setting('session_replication_role') <> 'replica'
        AND NEW.subject <> '00000000-0000-0000-0000-000000000000' -- the canary (models/canary.py)
        AND coalesce(said('cause'), '') NOT IN ('database_went_back', 'clock_stepped_back') THEN
        PERFORM write_history(
            NEW.scope, NEW.subject,
            coalesce(
                (SELECT username FROM users WHERE NEW.scope = 'user' AND id = as_uuid(NEW.subject)),
                (SELECT max(subject_name) FROM revocations WHERE scope = NEW.scope::text AND subject = NEW.subject), ''
            ),
            coalesce(said('cause'), CASE NEW.scope WHEN 'session' THEN 'session_ended' ELSE 'generation_raised' END), 0
        );
    END IF;
    RETURN NULL;
END
$$;

-- At the commit: a transaction that took long may have let sign-ins under the older generation through meanwhile,
-- whose tokens live longer than the cutoff that was stamped at its beginning.
CREATE OR REPLACE FUNCTION cutoffs_at_commit() RETURNS trigger LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
DECLARE
    last_token timestamptz;
BEGIN
    -- The server's own revocations are bounded by its statement_timeout, and that by the leeway.
    IF NEW.scope = 'session' OR said('revocation_id') IS NOT NULL
        OR clock_timestamp() - transaction_timestamp() < interval '2 seconds' THEN
        RETURN NULL;
    END IF;
    IF NEW.scope = 'everyone' THEN
        SELECT max(token_expires_at) INTO last_token FROM login_sessions;
    ELSE
        SELECT max(token_expires_at) INTO last_token FROM login_sessions
        WHERE user_id = as_uuid(NEW.subject) AND token_expires_at > '-infinity';
    END IF;
    UPDATE cutoffs SET expires_at = cutoff_expiry(last_token)
    WHERE scope = NEW.scope AND subject = NEW.subject AND expires_at < cutoff_expiry(last_token) - interval '1 second';
    RETURN NULL;
END
$$;

-- All workers, and whether each has applied the transaction: as soon as all have, or after some milliseconds, because
-- whoever asks for a confirmation would have to ask again and again. It does not wait for a row that was left behind,
-- whose lease is long over by this clock: what counts is the asker's own judgement (models/worker.py).
CREATE OR REPLACE FUNCTION read_workers(transaction_id xid8, patience_ms integer)
RETURNS TABLE (
    incarnation text, is_old boolean, worker_id text, renewals bigint, lease_s double precision, has_applied boolean
) LANGUAGE plpgsql AS $$
BEGIN
    FOR waited_ms IN 1..patience_ms LOOP
        PERFORM FROM workers AS w
        WHERE NOT coalesce(pg_visible_in_snapshot(transaction_id, w.snapshot), FALSE)
            AND w.renewed_at > clock_timestamp() - make_interval(secs => 2 * w.lease_s);
        EXIT WHEN NOT FOUND;
        PERFORM pg_sleep(0.001);
    END LOOP;
    RETURN QUERY
    SELECT
        i.id::text, i.since < clock_timestamp() - interval '1 minute', w.id::text, w.renewals, w.lease_s,
        w.incarnation = i.id AND coalesce(pg_visible_in_snapshot(transaction_id, w.snapshot), FALSE)
    FROM incarnation AS i LEFT JOIN workers AS w ON TRUE;
END
$$;

-- After the clock has stepped back: what the rows say of tokens that are good again (lastcall/listener.py).
CREATE OR REPLACE FUNCTION bring_back_cutoffs() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('lastcall.cause', 'clock_stepped_back', TRUE); -- none of these is a new one
    -- So far ahead that rows of sessions were purged as well (models/purge.py, which keeps them for 30 days): nothing
    -- tells any more whose tokens are good again.
    UPDATE everyone SET gen = gen + 1, purged_at = clock_timestamp()
    WHERE purged_at > clock_timestamp() + interval '29 days';
    IF FOUND THEN
        PERFORM raise_cutoff('everyone', '', gen, cutoff_expiry(clock_timestamp() + interval '1 day')) FROM everyone;
    END IF;
    PERFORM raise_cutoff('everyone', '', e.gen, cutoff_expiry((SELECT max(token_expires_at) FROM login_sessions)))
    FROM everyone AS e WHERE e.gen > 0;
    PERFORM raise_cutoff('user', s.user_id::text, s.gen, cutoff_expiry(s.last_token)) FROM (
        -- Not only rows of an older generation: a session that outlived a new password had tokens from before it.
        SELECT
            a.user_id, coalesce(max(u.gen), max(a.user_gen) + 1) AS gen, max(a.token_expires_at) AS last_token
        FROM login_sessions AS a LEFT JOIN users AS u ON u.id = a.user_id
        WHERE a.token_expires_at > clock_timestamp() - cutoff_leeway() AND (u.id IS NULL OR u.gen > 0)
        GROUP BY a.user_id ORDER BY a.user_id
    ) AS s;
    PERFORM raise_cutoff('session', s.id::text, 0, s.token_expires_at + cutoff_leeway()) FROM (
        SELECT id, token_expires_at FROM login_sessions
        WHERE ended_at IS NOT NULL AND ended_scope = 'session' AND token_expires_at > clock_timestamp() - cutoff_leeway()
        ORDER BY id
    ) AS s;
    UPDATE login_sessions SET lapsed = FALSE WHERE lapsed AND expires_at > clock_timestamp()
        AND shelf = (SELECT -2 - gen FROM everyone);
    UPDATE everyone SET purged_at = clock_timestamp() WHERE purged_at > clock_timestamp();
    PERFORM set_config('lastcall.cause', '', TRUE);
END
$$;

-- What triggers call finds our tables, whoever writes: postgres_fdw and logical replication look for nothing but in
-- pg_catalog (docs/scaling.md), and a temporary table may have the name of one of ours.
DO $$
DECLARE
    ours regprocedure;
BEGIN
    FOR ours IN
        SELECT oid FROM pg_proc WHERE pronamespace = current_schema()::regnamespace AND prorettype = 'trigger'::regtype
        AND proname ~ '^(users|user_roles|everyone|login_sessions|cutoffs|workers)_(before|after|at)_'
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', ours, current_schema());
    END LOOP;
END
$$;

-- ------------------------------------------------------------------------------------------------------- triggers
CREATE OR REPLACE TRIGGER users_before_insert BEFORE INSERT ON users
FOR EACH ROW EXECUTE FUNCTION users_before_insert();
CREATE OR REPLACE TRIGGER users_before_update BEFORE UPDATE ON users
FOR EACH ROW EXECUTE FUNCTION users_before_update();
CREATE OR REPLACE TRIGGER users_after_update AFTER UPDATE ON users
FOR EACH ROW WHEN (NEW.gen > OLD.gen) EXECUTE FUNCTION users_after_update();
CREATE OR REPLACE TRIGGER users_after_delete AFTER DELETE ON users
FOR EACH ROW EXECUTE FUNCTION users_after_delete();
CREATE OR REPLACE TRIGGER users_after_new_name AFTER UPDATE OF username OR DELETE ON users
FOR EACH ROW EXECUTE FUNCTION users_after_new_name();
CREATE OR REPLACE TRIGGER users_after_truncate AFTER TRUNCATE ON users
FOR EACH STATEMENT EXECUTE FUNCTION everyone_after_truncate();
CREATE OR REPLACE TRIGGER user_roles_after_delete AFTER DELETE ON user_roles
FOR EACH ROW EXECUTE FUNCTION user_roles_after_loss();
CREATE OR REPLACE TRIGGER user_roles_after_update AFTER UPDATE ON user_roles
FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION user_roles_after_loss();
CREATE OR REPLACE TRIGGER user_roles_after_truncate AFTER TRUNCATE ON user_roles
FOR EACH STATEMENT EXECUTE FUNCTION user_roles_after_truncate();
CREATE OR REPLACE TRIGGER everyone_before_update BEFORE UPDATE ON everyone
FOR EACH ROW EXECUTE FUNCTION everyone_before_update();
CREATE OR REPLACE TRIGGER everyone_after_update AFTER UPDATE ON everyone
FOR EACH ROW WHEN (NEW.gen > OLD.gen) EXECUTE FUNCTION everyone_after_update();
-- A session that a user's or everyone's generation has ended needs no cutoff of its own.
CREATE OR REPLACE TRIGGER login_sessions_after_end AFTER UPDATE ON login_sessions
FOR EACH ROW WHEN (
    OLD.ended_at IS NULL AND NEW.ended_at IS NOT NULL AND coalesce(NEW.ended_scope, 'session') = 'session'
)
EXECUTE FUNCTION login_sessions_after_end();
CREATE OR REPLACE TRIGGER login_sessions_after_delete AFTER DELETE ON login_sessions
FOR EACH ROW WHEN (OLD.ended_at IS NULL AND OLD.token_expires_at + cutoff_leeway() > clock_timestamp())
EXECUTE FUNCTION login_sessions_after_end();
CREATE OR REPLACE TRIGGER login_sessions_after_truncate AFTER TRUNCATE ON login_sessions
FOR EACH STATEMENT EXECUTE FUNCTION login_sessions_after_truncate();
CREATE OR REPLACE TRIGGER workers_after_truncate AFTER TRUNCATE ON workers
FOR EACH STATEMENT EXECUTE FUNCTION workers_after_truncate();
CREATE OR REPLACE TRIGGER cutoffs_after_truncate AFTER TRUNCATE ON cutoffs
FOR EACH STATEMENT EXECUTE FUNCTION everyone_after_truncate();
-- The purge deletes what is over. The canary is nobody's cutoff.
CREATE OR REPLACE TRIGGER cutoffs_before_delete BEFORE DELETE ON cutoffs
FOR EACH ROW WHEN (OLD.expires_at > clock_timestamp() AND OLD.subject <> '00000000-0000-0000-0000-000000000000')
EXECUTE FUNCTION cutoffs_before_delete();
CREATE OR REPLACE TRIGGER cutoffs_before_write BEFORE INSERT OR UPDATE ON cutoffs
FOR EACH ROW EXECUTE FUNCTION cutoffs_before_write();
CREATE OR REPLACE TRIGGER cutoffs_after_write AFTER INSERT OR UPDATE ON cutoffs
FOR EACH ROW EXECUTE FUNCTION cutoffs_after_write();
DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_trigger WHERE tgname = 'cutoffs_at_commit' AND tgrelid = 'cutoffs'::regclass
    ) THEN
        CREATE CONSTRAINT TRIGGER cutoffs_at_commit AFTER INSERT OR UPDATE ON cutoffs
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION cutoffs_at_commit();
    END IF;
END
$$;
-- Rows that logical replication brings from another region are stamped and announced here as well.
ALTER TABLE cutoffs ENABLE ALWAYS TRIGGER cutoffs_before_write;
ALTER TABLE cutoffs ENABLE ALWAYS TRIGGER cutoffs_after_write;

-- ---------------------------------------------------------------------------------------------------------- roles
-- GRANT them to the roles that sign in.
-- lastcall_app:     what the server's own processes may do. The history is append-only for them.
-- lastcall_service: what a service may do that checks tokens with the core: no passwords, no names, no addresses.
-- Whoever applies this without the right to make roles goes without them, and grants what he likes.
DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['lastcall_app', 'lastcall_service'] LOOP
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
                EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
            END IF;
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN NULL; -- another database of this cluster makes it just now
        END;
    END LOOP;
    GRANT SELECT, INSERT, UPDATE, DELETE ON
        users, user_roles, login_sessions, unmarked_ends, former_names, cutoffs, workers, incarnation, sign_in_attempts
        TO lastcall_app;
    GRANT SELECT, UPDATE ON everyone TO lastcall_app;
    GRANT SELECT, INSERT ON revocations TO lastcall_app;
    GRANT SELECT ON cutoffs, everyone TO lastcall_service;
    GRANT SELECT, INSERT ON incarnation TO lastcall_service;
    GRANT SELECT, INSERT, UPDATE, DELETE ON workers TO lastcall_service;
    GRANT SELECT (scope, subject, cutoff_at) ON revocations TO lastcall_service;
    GRANT SELECT (id, user_id, ended_at, ended_scope) ON login_sessions TO lastcall_service;
    -- A service that was broken into must not confirm for others, nor take their rows away. Once only: this locks the
    -- table that every lease needs.
    IF NOT EXISTS (SELECT FROM pg_policy WHERE polrelid = 'workers'::regclass) THEN
        ALTER TABLE workers ADD COLUMN IF NOT EXISTS role_name name; -- in a database of before: NULL, anybody's
        ALTER TABLE workers ALTER COLUMN role_name SET DEFAULT current_user;
        ALTER TABLE workers ENABLE ROW LEVEL SECURITY;
        CREATE POLICY all_rows ON workers USING (TRUE) WITH CHECK (TRUE);
        CREATE POLICY services_add_their_own ON workers AS RESTRICTIVE FOR INSERT TO lastcall_service
        WITH CHECK (role_name = current_user);
        CREATE POLICY services_change_their_own ON workers AS RESTRICTIVE FOR UPDATE TO lastcall_service
        USING (role_name IS NULL OR role_name = current_user);
        CREATE POLICY services_delete_their_own ON workers AS RESTRICTIVE FOR DELETE TO lastcall_service
        USING (role_name IS NULL OR role_name = current_user);
    END IF;
EXCEPTION
    WHEN insufficient_privilege THEN RAISE NOTICE 'the roles lastcall_app and lastcall_service were not made';
END
$$;
