"""Formulas of the method, each broken on purpose in one line, and the tests that must notice. `make mutations` runs them.

To add a guard for a formula: write the test; copy a line of MUTATIONS below, with a name that says what would be wrong, the
file under imagebind_llm/, a text that occurs in it exactly once, what to put in its place, and the tests ("test_x.py" or
"test_x.py::test_y", several separated by spaces, the narrowest that should fail); then run

    make mutations ARGS="--only NAME"

and see it caught. Take a text as short as can be, so that changes around it leave it alone. tests/test_mutations.py keeps the
texts in step with the code in every `make test`; what catching means is in run_mutations.py.
"""

from dataclasses import dataclass

PACKAGE = "imagebind_llm"


@dataclass(frozen=True)
class Mutation:
    """`old`, which stands exactly once in a file of the package, becomes `new`; one of `tests` must fail then."""

    name: str
    file: str
    old: str
    new: str
    tests: str

    @property
    def path(self) -> str:
        """From the root of the tree."""
        return f"{PACKAGE}/{self.file}"

    def applied(self, source: str) -> str:
        """The file's text with the change. Raises ValueError unless the old text is there exactly once."""
        if (count := source.count(self.old)) != 1:
            raise ValueError(f"{self.path}: expected this text once, found it {count} times: {self.old}")
        return source.replace(self.old, self.new)


def node_ids(mutations: list[Mutation]) -> list[str]:
    """What pytest is to run, each once, in order."""
    return list(dict.fromkeys(f"tests/{test}" for mutation in mutations for test in mutation.tests.split()))


M = Mutation
GRADIENT = "test_critic.py::test_a_steps_gradient_is_the_definition_however_it_is_split_into_passes"
MUTATIONS = [
    # --- losses
    M("intent cross-entropy is a mean over the pass, not the step", "losses.py", 'reduction="sum"', 'reduction="mean"',
      "test_training.py::test_the_gradient_does_not_depend_on_how_rows_are_split_into_passes"),
    M("rationale likelihood is maximised the wrong way", "losses.py", "-(logp * mask).sum()", "(logp * mask).sum()",
      "test_model.py::test_logits_and_loss_equal_the_public_implementation"),
    M("rationale likelihood is divided by all positions", "losses.py", "mask.sum() if count is None",
      "mask.numel() if count is None", "test_model.py::test_logits_and_loss_equal_the_public_implementation"),
    M("gradient of log p without the softmax", "losses.py", "weight[targets[part]] - linear(p, weight.t())",
      "weight[targets[part]]", "test_model.py::test_token_logp_and_its_gradient_equal_log_softmax_in_any_chunking"),
    M("answer tokens are counted with the prompt's", "training.py", "sum(len(row.ids) - row.n_prompt for",
      "sum(len(row.ids) for", "test_training.py::test_an_evaluation_drops_and_doubles_no_row"),
    M("intent loss weighs what the rationale's should", "training.py", "settings.w_rationale * rationale_nll",
      "settings.w_intent * rationale_nll", "test_training.py::test_each_weight_scales_its_own_loss"),
    # --- self-critical loss
    M("self-critical loss with the wrong sign", "losses.py", "return -weighted.sum()", "return weighted.sum()",
      "test_self_critical.py::test_it_is_the_sum_over_tokens_divided_by_a_constant"),
    M("self-critical loss is a mean over tokens", "losses.py", "(len(advantage) * max_tokens)", "mask.sum()",
      "test_self_critical.py::test_it_is_the_sum_over_tokens_divided_by_a_constant"),
    M("gradient flows into the advantage", "losses.py", "by_token.detach()", "by_token",
      "test_self_critical.py::test_no_gradient_flows_into_the_advantage"),
    M("self-critical loss counts what stands after the end", "losses.py", "logp.masked_fill(~mask, 0)", "logp",
      "test_self_critical.py::test_tokens_after_the_end_do_not_matter_even_if_they_are_impossible"),
    M("self-critical loss without the end token", "self_critical.py", "eos if len(ids) < self.max_new else []", "[]", GRADIENT),
    M("an end token is scored that was never drawn", "self_critical.py", "eos if len(ids) < self.max_new else []", "eos",
      GRADIENT),
    M("an answer at the length limit counts as finished", "self_critical.py", "[len(ids) < self.max_new for",
      "[len(ids) <= self.max_new for",
      "test_critic.py::test_an_answer_at_the_length_limit_is_not_finished_and_has_no_end_token"),
    M("answers are drawn at temperature 0.5", "self_critical.py", "Sampling(temperature=1.0)", "Sampling(temperature=0.5)",
      "test_critic.py::test_answers_are_drawn_at_temperature_one_from_all_tokens"),
    M("answers are drawn from the likeliest tokens alone", "self_critical.py", "Sampling(temperature=1.0)",
      "Sampling(1.0, 0.9)", "test_critic.py::test_answers_are_drawn_at_temperature_one_from_all_tokens"),
    M("divergence with the wrong sign", "self_critical.py", "(logp.detach() - reference)", "(reference - logp.detach())",
      GRADIENT),
    M("divergence without its weight", "self_critical.py", "self.settings.kl * log_ratio.sum(1)", "log_ratio.sum(1)", GRADIENT),
    M("divergence from the model as it is now", "self_critical.py", "functional_call(model, self.reference,",
      "functional_call(model, {},", GRADIENT),
    M("lambda does not rise", "self_critical.py", "max(epoch - self.start, 0.0)", "1.0",
      "test_critic.py::test_lambda_rises_within_an_epoch_of_the_critics_start"),
    M("lambda rises from the run's start", "self_critical.py", "max(epoch - self.start, 0.0)", "epoch",
      "test_critic.py::test_lambda_rises_within_an_epoch_of_the_critics_start"),
    M("rewards of another clip's gold label", "self_critical.py", "[g for g in golds for _ in range(k)]", "golds * k",
      GRADIENT),
    M("a pass counts in full, whatever its share of the step", "training.py",
      "len(sampled.answers) / (counts.clips * settings.samples)", "1", GRADIENT),
    M("the critic counts in full from its first step", "training.py", "critic.weight * criticism", "criticism", GRADIENT),
    M("the divisor hangs on the longest answer of a pass", "self_critical.py", "value, self.max_new)", "value, mask.shape[1])",
      GRADIENT),
    M("a loss that is averaged over ranks without being a sum", "training.py", "(loss * ranks).backward()", "loss.backward()",
      "test_training.py::test_a_step_is_multiplied_by_the_ranks_that_wrapped_models_average_over"),
    M("draws that every step repeats", "training.py", "position.epoch, position.step)", "position.epoch)",
      "test_critic.py::test_draws_differ_by_seed_epoch_and_step_and_are_repeated_by_nothing_else"),
    M("draws that clips with the same prompt share", "self_critical.py", "(seed, batch.keys[i], p), shape", "(seed, p), shape",
      "test_critic.py::test_two_clips_with_the_same_prompt_get_answers_of_their_own"),
    M("draws that hang on the rows of the batch", "self_critical.py", "(seed, batch.keys[i], p), shape",
      "(seed, batch.keys, p), shape", "test_critic_run.py::test_other_shares_of_the_same_steps_draw_the_same_answers"),
    # --- rewards
    M("half the reward for the coarse class", "rewards.py", "COARSE_REWARD = 0.25", "COARSE_REWARD = 0.5",
      "test_rewards.py::test_intent_part_is_one_a_quarter_or_nothing"),
    M("out of scope has a coarse class", "rewards.py", "taxonomy.out_of_scope in (answer.intent, gold)", "False",
      "test_rewards.py::test_intent_part_is_one_a_quarter_or_nothing"),
    M("rationale reward of CIDEr-D alone", "rewards.py", "CIDER_SCALE, 1.0) / 2 + rouge_l(answer.rationale, reference) / 2",
      "CIDER_SCALE, 1.0)", "test_rewards.py::test_rationale_part_is_half_cider_and_half_rouge"),
    M("consistency with the label that was named", "rewards.py", "labels.index(gold)]) if answer.rationale",
      "labels.index(answer.intent or gold)]) if answer.rationale",
      "test_rewards.py::test_consistency_part_reads_the_gold_label_and_not_the_named_one"),
    M("a cut answer has good form", "rewards.py", "answer.finished and text.endswith", "text.endswith",
      "test_rewards.py::test_format_part_is_the_share_of_conditions_that_hold"),
    M("no limit to repetition", "rewards.py", "repetition4(text) < MOST_REPETITION", "True",
      "test_rewards.py::test_format_part_is_the_share_of_conditions_that_hold"),
    # --- advantages
    M("baseline greedy compares with the first sample", "rewards.py", "samples - score[:, -1:]", "samples - score[:, :1]",
      "test_rewards.py::test_advantage_is_the_definition"),
    M("leave-one-out keeps itself in", "rewards.py", "/ (n_samples - 1)", "/ n_samples",
      "test_rewards.py::test_advantage_is_the_definition"),
    M("raw sums in groups are not normalised", "rewards.py", '_normalised(score) if baseline == "group" else score', "score",
      "test_rewards.py::test_advantage_is_the_definition"),
    M("deviation of a sample, not of the group", "rewards.py", "correction=0", "correction=1",
      "test_rewards.py::test_advantage_is_the_definition"),
    M("reward parts all weigh one", "rewards.py", "weight * groups[name]", "groups[name]",
      "test_rewards.py::test_advantage_is_the_definition"),
    M("divergence is a reward", "rewards.py", "- (0 if penalty is None", "+ (0 if penalty is None",
      "test_rewards.py::test_advantage_is_the_definition"),
    M("clips whose answers are all alike still learn", "rewards.py", "value.masked_fill(alike[:, None], 0).float()",
      "value.float()", "test_rewards.py::test_a_group_that_is_alike_is_skipped_with_its_penalty"),
    # --- the intent head, and what is absent
    M("intent head reads the first answer token", "model.py", "rows + asked - 1]", "rows + asked]",
      "test_intent_head.py::test_answers_do_not_move_the_heads_logits"),
    M("intent head sees absent modalities", "model.py", "carried.masked_fill(~there[..., None], 0.0)", "carried",
      "test_intent_head.py::test_an_absent_modality_is_nothing_to_the_head"),
    M("intent head reads the first prompt token in inference", "generate.py", "* longest + lengths - 1", "* longest",
      "test_intent_head.py::test_training_and_inference_give_the_same_logits"),
    M("bridge looks at absent modalities", "bridge.py", "torch.where(present, embeddings, 0.0)", "embeddings",
      "test_bridge.py::test_what_stands_in_an_absent_slot_is_never_looked_at"),
    M("averages count absent modalities", "bridge.py", "(weights.float().sum(1, keepdim=True) + 1e-6)", "weights.shape[1]",
      "test_bridge.py::test_average_over_the_present_is_the_average_without_the_absent"),
    M("prompts of absent modalities are read", "attention.py", "scores.masked_fill(absent[:, None, None], -torch.inf)",
      "scores", "test_attention.py::test_gated_attention_equals_torch_and_finite_differences"),
    M("a model of the words alone reads vectors (training)", "batches.py", "present & self.known", "present",
      "test_batches.py::test_a_modality_that_is_not_wanted_is_masked"),
    M("a model of the words alone reads vectors (answers)", "inference.py", "(present & self._known)", "present",
      "test_methods.py::test_a_model_of_the_words_alone_looks_at_no_other_vector"),
    # --- attention
    M("kernel of GPUs sees what comes later", "attention.py", "is_causal=True", "is_causal=False",
      "test_attention.py::test_the_kernel_of_gpus_is_asked_for_the_same_causal_attention"),
    M("blocks of queries see the next position", "attention.py", ".triu_(1)", ".triu_(2)",
      "test_attention.py::test_blocked_causal_attention_equals_torch_and_finite_differences"),
    M("new positions behind a cache see later ones", "llama.py", ".tril(self.used)", ".tril(self.used + 1)",
      "test_llama.py::test_a_cache_gives_the_same_states_as_no_cache"),
    M("a cache's bias is not added", "attention.py", "t, -1) + bias", "t, -1)",
      "test_attention.py::test_cached_attention_equals_torch"),
    M("answers that are scored side by side see each other", "generate.py", "(owner[:, None] == owner) & (", "(",
      "test_generate.py::test_answer_scores_equal_a_forward_pass_for_each_answer"),
    M("decoding sees the padding of shorter prompts", "generate.py", "(columns < lengths[:, None]) |", "(columns >= 0) |",
      "test_generate.py::test_rows_of_a_batch_equal_the_same_rows_alone_and_without_a_cache"),
    M("prompt keys go through LoRA", "llama.py", "keys = linear(prefix, self.wk.weight)", 'keys = self.project("wk", prefix)',
      "test_llama.py::test_prompts_are_read_through_the_frozen_matrices_alone"),
    M("prompt values go through LoRA", "llama.py", "values = linear(prefix, self.wv.weight)",
      'values = self.project("wv", prefix)', "test_llama.py::test_prompts_are_read_through_the_frozen_matrices_alone"),
    M("gates without tanh", "llama.py", "torch.tanh(self.gate)", "self.gate",
      "test_llama.py::test_gated_attention_equals_the_formula_written_out"),
    M("rotary with rising frequencies", "llama.py", "config.rope_theta**-exponents", "config.rope_theta**exponents",
      "test_llama.py::test_gated_attention_equals_the_formula_written_out"),
    # --- training: schedule, optimizer, ranks, resume
    M("no warm-up", "training.py", "peak * epoch / settings.warmup_epochs", "peak",
      "test_training.py::test_learning_rate_equals_the_public_schedule"),
    M("learning rate rises along the cosine", "training.py", "(1 + math.cos(", "(1 - math.cos(",
      "test_training.py::test_learning_rate_equals_the_public_schedule"),
    M("blr is not scaled by ranks", "training.py", "settings.accum_iter * ranks / 256", "settings.accum_iter / 256",
      "test_training.py::test_the_peak_is_blr_for_256_rows_a_step_unless_lr_is_given"),
    M("norms decay", "training.py", 'parameter.ndim == 1 or name.endswith(".bias")', 'name.endswith(".bias")',
      "test_training.py::test_weight_decay_groups_equal_the_public_ones"),
    M("gradients are not clipped", "training.py", "settings.clip_grad or math.inf", "math.inf",
      "test_training.py::test_the_gradient_is_clipped_to_its_largest_norm_and_the_true_norm_is_returned"),
    M("a rank computes its neighbour's rows too", "batches.py", "rank * passes + number :: ranks * passes", "number :: passes",
      "test_batches.py::test_every_row_is_seen_once_an_epoch_by_any_number_of_ranks_and_passes"),
    M("resuming forgets the optimizer's moments", "run.py", 'if f"{name}.exp_avg" in state:', "if False:",
      "test_run.py::test_a_continued_run_has_the_weights_and_moments_that_were_saved"),
    M("moments of weights that are left behind stay", "run.py", "self.optimizer.state.clear()", "pass",
      "test_run.py::test_the_self_critical_loss_begins_with_the_best_weights_and_without_moments"),
    M("the guard strikes at better models", "choice.py", "change.mean() < -change.std()", "change.mean() > change.std()",
      "test_run.py::test_the_guard_counts_a_model_that_is_worse_by_more_than_a_standard_error"),
    # --- evaluation
    M("each rank evaluates every row", "training.py", "[distributed.rank() :: distributed.world_size()]", "[:]",
      "test_shares.py::test_dev_scores_of_several_ranks_are_those_of_one"),
    M("each rank scores every row for the results", "results.py", "own = known[distributed.rank() :: distributed.world_size()]",
      "own = known", "test_shares.py::test_results_of_several_ranks_are_in_order_and_every_row_is_scored_once"),
    M("calibration on test", "results.py", 'calibrate(*found["dev"]) if', 'calibrate(*found["test"]) if',
      "test_splits.py::test_other_labels_of_test_rows_leave_the_calibration_and_every_number_of_dev"),
    M("alpha from test", "results.py", '(corpus.splits["dev"], corpus.prompts["dev"], found["dev"])',
      '(corpus.splits["test"], corpus.prompts["test"], found["test"])',
      "test_splits.py::test_other_labels_of_test_rows_leave_the_calibration_and_every_number_of_dev"),
    M("the verifier is fitted on dev", "run.py", "fit_verifier(*train, taxonomy,", "fit_verifier(*dev, taxonomy,",
      "test_splits.py::test_garbled_rationales_of_dev_leave_the_verifier_as_it_is"),
    M("head and decoder swap their shares", "inference.py", "self.share * head + (1 - self.share) * decoder",
      "self.share * decoder + (1 - self.share) * head",
      "test_inference.py::test_probabilities_are_the_weighted_mixture_at_the_temperature"),
    M("temperature sharpens", "inference.py", "* decoder) / self.temperature)", "* decoder) * self.temperature)",
      "test_inference.py::test_probabilities_are_the_weighted_mixture_at_the_temperature"),
    M("alpha multiplies", "inference.py", "q.clamp(min=SMALLEST) ** self.alpha", "q.clamp(min=SMALLEST) * self.alpha",
      "test_inference.py::test_criticised_probabilities_are_weighed_by_the_reading_to_the_power_of_alpha"),
    M("the least likely alpha", "inference.py", "return max(ALPHAS", "return min(ALPHAS",
      "test_inference.py::test_alpha_makes_gold_likeliest"),
    M("label scores forget an answer's later tokens", "generate.py", "scores.index_add(1, owner, logp)", "scores",
      "test_generate.py::test_answer_scores_equal_a_forward_pass_for_each_answer"),
    M("the verifier reads label words", "verifier.py", "_terms(mask_labels(text, taxonomy))", "_terms(text)",
      "test_verifier.py::test_label_words_do_not_move_it"),
    # --- the classifier
    M("the probe is scaled by the reported rows", "methods.py",
      "Scaling.of(train.vectors[:, columns], train.present[:, columns])",
      "Scaling.of(protocol.report.vectors[:, columns], protocol.report.present[:, columns])",
      "test_classifier.py::test_reported_vectors_change_the_answers_to_their_own_rows_alone"),
    M("the probe's epoch is chosen on the reported rows", "methods.py", "(inputs(select), select.classes) if select",
      "(inputs(protocol.report), protocol.report.classes) if select",
      "test_classifier.py::test_what_the_reported_rows_are_labelled_changes_no_answer"),
    M("the probe keeps its last epoch", "probe.py", "if score > best[s][0]:", "if True:",
      "test_probe.py::test_all_seeds_at_once_give_what_a_plain_loop_of_each_gives"),
    M("seeds share the order of rows", "probe.py", "torch.randperm(len(inputs), generator=generator) for",
      "torch.randperm(len(inputs), generator=generators[0]) for",
      "test_probe.py::test_all_seeds_at_once_give_what_a_plain_loop_of_each_gives"),
    M("bootstrap that is not paired", "metrics.py", "resampled(gold, ours), resampled(gold, theirs)",
      "resampled(gold, ours), resampled(gold, theirs, seed=1)",
      "test_metrics.py::test_runs_that_answer_alike_differ_by_nothing"),
    M("calibration error without the size of bins", "metrics.py",
      "float(np.sum(np.abs(confident - right) * counts) / counts.sum())", "float(np.mean(np.abs(confident - right)))",
      "test_metrics.py::test_calibration_error_in_closed_form"),
    M("macro F1 over classes that nobody asked about", "metrics.py", "f1.sum(1, where=asked > 0) / (asked > 0).sum(1)",
      "f1.sum(1) / n_classes", "test_metrics.py::test_a_class_that_is_only_predicted_is_no_part_of_the_macro_average"),
    # --- text metrics
    M("CIDEr-D does not clip counts", "text_metrics.py", "min(w, other[g]) * other[g]", "w * other[g]",
      "test_text_metrics.py::test_cider_d_equals_the_formula_written_out"),
    M("CIDEr-D without its length penalty", "text_metrics.py", " * math.exp(-((n_own - n_their) ** 2) / (2 * SIGMA**2))", "",
      "test_text_metrics.py::test_cider_d_equals_the_formula_written_out"),
    # --- embeddings and their store
    M("mel pictures are divided by another deviation", "mel.py", "/ MEL_STD", "/ (2 * MEL_STD)",
      "test_media.py::test_the_mels_of_a_sound_file_are_the_public_ones"),
    M("the last window ends early", "crops.py", '(n - 1 if rule == "to_end" else n)', "n",
      "test_media.py::test_window_starts_are_even_and_stay_inside_the_clip"),
    M("windows count alike, however often they occur", "encoder.py", "(weights / weights.sum()) @ own", "own.mean(0)",
      "test_encoder.py::test_weighted_distinct_windows_equal_the_full_schedule"),
    M("the text tower sees what comes later", "encoder.py", "(tokens, causal=True)", "(tokens, causal=False)",
      "test_encoder.py::test_tower_equals_the_public_output"),
    M("text outputs have no scale", "encoder.py", ".exp().clamp(max=MAX_SCALE)", ".clamp(max=MAX_SCALE)",
      "test_encoder.py::test_tower_equals_the_public_output"),
    M("rows of different encoders are mixed", "store.py", "for name in mine if mine[name] != theirs[name]",
      "for name in mine if False", "test_store.py::test_a_mixture_is_refused_with_the_difference_and_the_way_out"),
    M("a model takes vectors of another encoder", "checkpoint.py", "if n in ours and ours[n] != theirs[n]", "if False",
      "test_methods.py::test_checkpoints_of_other_labels_modalities_or_embeddings_are_refused"),
    # --- leaks
    M("rows to report may be trained on", "seen.py", "if any(marks[kind] in seen[kind] for kind in CLIP if kind in marks)]",
      "if False]", "test_protocol.py::test_a_clip_under_a_second_key_and_with_other_words_is_known_by_its_sound_or_picture"),
    M("a clip is known by its key and file alone", "seen.py", 'CLIP = ("key", "file", "sound", "picture")',
      'CLIP = ("key", "file")',
      "test_protocol.py::test_a_clip_under_a_second_key_and_with_other_words_is_known_by_its_sound_or_picture"),
    M("silence is a clip", "seen.py", "if mark not in shared}", "if True}",
      "test_protocol.py::test_silence_and_black_frames_are_no_clips"),
    M("only the last stage counts as seen", "seen.py", "return (*before, Stage(str(path), trained, chosen, old))",
      "return (Stage(str(path), trained, chosen, old),)",
      "test_seen.py::test_an_old_checkpoints_data_are_looked_up_and_go_on_with_the_chain"),
    M("stages before the last are forgotten", "corpus.py", "return (*before, own), said", "return (own,), said",
      "test_seen.py::test_a_report_on_what_an_earlier_stage_saw_under_another_name_is_refused"),
    M("training takes a test split that it sees", "corpus.py",
      'refuse_overlap(name, marks.get(name, []), examples["test"], marks["test"])', "pass",
      "test_seen.py::test_training_refuses_a_test_split_that_it_sees_under_another_name"),
    M("a row of JSON has another key for the guard", "seen.py", 'str(Path(row["clip"]).with_suffix(""))', 'str(row["clip"])',
      "test_seen.py::test_the_guard_and_training_call_a_row_by_one_key"),
    M("copies of words and labels are no leak", "seen.py", "if len(copied) > len(report) / 2 else", "if False else",
      "test_seen.py::test_words_with_their_label_are_a_leak_where_most_are_copied_in_whichever_stages"),
    M("alpha on the first rows of dev", "results.py",
      "torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))[:ALPHA_ROWS]",
      "torch.arange(len(known))[:ALPHA_ROWS]", "test_results.py::test_alpha_is_chosen_on_drawn_dev_rows_the_same_for_a_seed"),
    # --- credit by claim
    M("what is undecided counts", "credit.py", "abs(v) >= DEAD_ZONE and", "True and",
      "test_credit.py::test_what_is_undecided_or_said_before_or_beyond_the_cap_does_not_count"),
    M("the same claim twice is paid twice", "credit.py", "and not again for", "for",
      "test_credit.py::test_what_is_undecided_or_said_before_or_beyond_the_cap_does_not_count"),
    M("any number of true claims is paid", "credit.py", "beyond = set(true[CAP:])", "beyond = set()",
      "test_credit.py::test_what_is_undecided_or_said_before_or_beyond_the_cap_does_not_count"),
    M("truth is a mean over claims", "credit.py", "total / CAP + floor(verdicts)",
      "total / max(len(verdicts), 1) + floor(verdicts)",
      "test_credit.py::test_saying_nothing_one_sure_thing_or_everything_is_worth_less_than_four_claims"),
    M("an answer without claims is not punished", "credit.py", "total / CAP + floor(verdicts)", "total / CAP",
      "test_credit.py::test_truth_is_the_capped_net_sum_and_misses_a_quarter_for_each_claim_too_few"),
    M("the divergence counts without bounds", "self_critical.py", "log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)",
      "log_ratio", "test_claim_credit.py::test_the_divergence_is_taken_off_token_by_token_and_within_bounds"),
    M("the divergence is added", "self_critical.py", "value = value - self.settings.kl", "value = value + self.settings.kl",
      "test_claim_credit.py::test_the_divergence_is_taken_off_token_by_token_and_within_bounds"),
    M("the intent part goes to all tokens", "self_critical.py", "values[row, first:last] += intent[row]",
      "values[row] += intent[row]",
      "test_claim_credit.py::test_the_intent_part_goes_to_the_label_and_the_others_to_all_tokens"),
    M("an answer's truth has no weight", "self_critical.py", 'self.weights["truth"] * values', "values",
      "test_claim_credit.py::test_truth_weighs_the_claims"),
    M("no claim is doubted", "self_critical.py", "[max(p, LEAST_WEIGHT)] * (last - first)", "[1.0] * (last - first)",
      "test_claim_credit.py::test_tokens_of_a_claim_weigh_what_the_judge_believes_and_all_others_one"),
    # --- captions beside the rows
    M("captions weigh as answers", "training.py", "settings.w_caption * rationale_nll", "settings.w_rationale * rationale_nll",
      "test_captions_mixed.py::test_answers_and_captions_are_means_over_their_own_tokens_each_with_its_own_weight"),
    M("answers are divided by the tokens of captions too", "training.py", "rationale_nll(logp, answers, counts.tokens)",
      "rationale_nll(logp, answers, counts.tokens + counts.captions)",
      "test_captions_mixed.py::test_answers_and_captions_are_means_over_their_own_tokens_each_with_its_own_weight"),
    M("a caption beside every row", "batches.py", "(len(step) + 1) // 2", "len(step)",
      "test_captions_mixed.py::test_every_two_rows_get_a_caption_and_none_comes_twice_before_all_came_once"),
    M("words of masked text are in the prompt", "methods.py", 'if name != "text" or present[0])', "if True)",
      "test_methods.py::test_masked_text_is_neither_embedded_nor_in_the_prompt"),
]  # fmt: skip
